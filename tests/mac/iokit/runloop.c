/*
 * Run loops and their sources, and libdispatch's queues, each of which is a thread with a run loop here.  Runs in each
 * process of a software Mac.
 *
 * A version 0 source is signalled by the program and performed once per signal; a source of events represents a version
 * 1 source, whose Mach port receives the kernel's messages.  The common modes are a set that includes the default mode:
 * a source added to the set stays in it when it is removed from the default mode alone.  No other modes are used here.
 */
#include "internal.h"

#include <stdlib.h>

struct __CFRunLoopSource {
    struct value value;
    CFRunLoopSourceContext context; /* of version 0 */
    bool of_events;
    bool signalled;
    struct event *first, **last;
    CFRunLoopRef loop; /* that performs it; not retained */
};

struct item {
    struct item *next;
    CFRunLoopSourceRef source; /* retained */
    bool in_default, in_common;
};

struct __CFRunLoop {
    struct value value;
    pthread_cond_t changed;
    bool stopped;
    struct item *items;
};

struct dispatch_queue_s {
    pthread_t thread;
    CFRunLoopRef loop;
    CFRunLoopSourceRef source;
    bool ready;
};

static struct value default_mode = {.type = STRING, .references = 1 << 30};
static struct value common_modes = {.type = STRING, .references = 1 << 30};
API const CFRunLoopMode kCFRunLoopDefaultMode = (CFRunLoopMode)&default_mode;
API const CFRunLoopMode kCFRunLoopCommonModes = (CFRunLoopMode)&common_modes;

/* Guards all loops, sources and queues. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t queue_changed = PTHREAD_COND_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t loop_of_thread;

static void source_destroy(struct value *value)
{
    CFRunLoopSourceRef source = (CFRunLoopSourceRef)value;
    while (source->first != NULL) {
        struct event *event = source->first;
        source->first = event->next;
        if (event->drop != NULL)
            event->drop(event);
        free(event);
    }
}

/* A new source of version 0; the context is copied. */
API CFRunLoopSourceRef CFRunLoopSourceCreate(CFAllocatorRef allocator, CFIndex order, CFRunLoopSourceContext *context)
{
    CFRunLoopSourceRef source = value_new(SOURCE, sizeof *source, source_destroy);
    (void)allocator;
    (void)order;
    source->context = *context;
    source->last = &source->first;
    return source;
}

CFRunLoopSourceRef source_of_events(void)
{
    CFRunLoopSourceRef source = value_new(SOURCE, sizeof *source, source_destroy);
    source->of_events = true;
    source->last = &source->first;
    return source;
}

void source_post(CFRunLoopSourceRef source, struct event *event)
{
    event->next = NULL;
    pthread_mutex_lock(&lock);
    *source->last = event;
    source->last = &event->next;
    if (source->loop != NULL)
        pthread_cond_broadcast(&source->loop->changed);
    pthread_mutex_unlock(&lock);
}

/* Marks a source as ready.  A sleeping loop must be woken separately. */
API void CFRunLoopSourceSignal(CFRunLoopSourceRef source)
{
    pthread_mutex_lock(&lock);
    source->signalled = true;
    pthread_mutex_unlock(&lock);
}

static void loop_destroy(struct value *value)
{
    CFRunLoopRef loop = (CFRunLoopRef)value;
    while (loop->items != NULL) {
        struct item *item = loop->items;
        loop->items = item->next;
        item->source->loop = NULL;
        CFRelease(item->source);
        free(item);
    }
    pthread_cond_destroy(&loop->changed);
}

static void thread_ends(void *loop)
{
    CFRelease(loop);
}

static void make_key(void)
{
    if (pthread_key_create(&loop_of_thread, thread_ends) != 0)
        fail("cannot create a thread-specific key");
}

/* The loop of this thread, with the same lifetime. */
API CFRunLoopRef CFRunLoopGetCurrent(void)
{
    CFRunLoopRef loop;
    pthread_once(&once, make_key);
    loop = pthread_getspecific(loop_of_thread);
    if (loop == NULL) {
        loop = value_new(LOOP, sizeof *loop, loop_destroy);
        pthread_cond_init(&loop->changed, NULL);
        pthread_setspecific(loop_of_thread, loop);
    }
    return loop;
}

/* Adds a source to a mode, which retains it; no effect if already added. */
API void CFRunLoopAddSource(CFRunLoopRef loop, CFRunLoopSourceRef source, CFRunLoopMode mode)
{
    struct item *item;
    pthread_mutex_lock(&lock);
    for (item = loop->items; item != NULL && item->source != source;)
        item = item->next;
    if (item == NULL) {
        item = allocate(sizeof *item);
        item->source = (CFRunLoopSourceRef)CFRetain(source);
        item->next = loop->items;
        loop->items = item;
    }
    item->in_default = true;
    item->in_common |= mode == kCFRunLoopCommonModes;
    source->loop = loop;
    pthread_cond_broadcast(&loop->changed);
    pthread_mutex_unlock(&lock);
}

/* Removes a source from a mode; one added to the common modes remains in them. */
API void CFRunLoopRemoveSource(CFRunLoopRef loop, CFRunLoopSourceRef source, CFRunLoopMode mode)
{
    struct item **at, *item;
    pthread_mutex_lock(&lock);
    for (at = &loop->items; *at != NULL && (*at)->source != source;)
        at = &(*at)->next;
    item = *at;
    if (item != NULL) {
        item->in_default = false;
        if (mode == kCFRunLoopCommonModes)
            item->in_common = false;
        source->loop = NULL;
    }
    if (item != NULL && !item->in_common)
        *at = item->next;
    else
        item = NULL;
    pthread_cond_broadcast(&loop->changed);
    pthread_mutex_unlock(&lock);
    if (item != NULL) {
        CFRelease(item->source);
        free(item);
    }
}

/* Wakes a sleeping loop. */
API void CFRunLoopWakeUp(CFRunLoopRef loop)
{
    pthread_mutex_lock(&lock);
    pthread_cond_broadcast(&loop->changed);
    pthread_mutex_unlock(&lock);
}

/* Makes CFRunLoopRun of that loop return. */
API void CFRunLoopStop(CFRunLoopRef loop)
{
    pthread_mutex_lock(&lock);
    loop->stopped = true;
    pthread_cond_broadcast(&loop->changed);
    pthread_mutex_unlock(&lock);
}

/* Performs one ready source; the lock is held before and after, but not meanwhile. */
static bool perform_one(CFRunLoopRef loop)
{
    for (struct item **at = &loop->items; *at != NULL; at = &(*at)->next) {
        struct item *item = *at;
        CFRunLoopSourceRef source = item->source;
        struct event *event = source->first;
        if (!item->in_default || (source->of_events ? event == NULL : !source->signalled))
            continue;
        CFRetain(source);
        *at = item->next; /* move to the end: round robin */
        item->next = NULL;
        while (*at != NULL)
            at = &(*at)->next;
        *at = item;
        source->signalled = false;
        if (event != NULL) {
            source->first = event->next;
            if (source->first == NULL)
                source->last = &source->first;
        }
        pthread_mutex_unlock(&lock);
        if (source->of_events) {
            event->perform(event);
            free(event);
        } else
            source->context.perform(source->context.info);
        CFRelease(source);
        pthread_mutex_lock(&lock);
        return true;
    }
    return false;
}

static bool has_sources(CFRunLoopRef loop)
{
    for (struct item *item = loop->items; item != NULL; item = item->next)
        if (item->in_default)
            return true;
    return false;
}

/* Runs the loop of this thread in the default mode until it is stopped or has no sources. */
API void CFRunLoopRun(void)
{
    CFRunLoopRef loop = CFRunLoopGetCurrent();
    pthread_mutex_lock(&lock);
    while (!loop->stopped && has_sources(loop))
        if (!perform_one(loop))
            pthread_cond_wait(&loop->changed, &lock);
    loop->stopped = false;
    pthread_mutex_unlock(&lock);
}

/* ---- libdispatch ---- */

struct work {
    struct event event;
    dispatch_function_t function;
    void *context;
    bool *done; /* of dispatch_sync_f */
};

static void work_perform(struct event *event)
{
    struct work *work = (struct work *)event;
    work->function(work->context);
    if (work->done != NULL) {
        pthread_mutex_lock(&lock);
        *work->done = true;
        pthread_cond_broadcast(&queue_changed);
        pthread_mutex_unlock(&lock);
    }
}

static void *run_queue(void *argument)
{
    dispatch_queue_t queue = argument;
    CFRunLoopRef loop = CFRunLoopGetCurrent();
    CFRunLoopAddSource(loop, queue->source, kCFRunLoopDefaultMode);
    pthread_mutex_lock(&lock);
    queue->loop = loop;
    queue->ready = true;
    pthread_cond_broadcast(&queue_changed);
    pthread_mutex_unlock(&lock);
    CFRunLoopRun();
    CFRunLoopRemoveSource(loop, queue->source, kCFRunLoopDefaultMode);
    CFRelease(queue->source);
    free(queue);
    return NULL;
}

/* A new serial queue. */
API dispatch_queue_t dispatch_queue_create(const char *label, void *attributes)
{
    dispatch_queue_t queue = allocate(sizeof *queue);
    (void)label;
    (void)attributes;
    queue->source = source_of_events();
    if (pthread_create(&queue->thread, NULL, run_queue, queue) != 0)
        fail("cannot create a thread");
    pthread_detach(queue->thread);
    pthread_mutex_lock(&lock);
    while (!queue->ready)
        pthread_cond_wait(&queue_changed, &lock);
    pthread_mutex_unlock(&lock);
    return queue;
}

CFRunLoopRef dispatch_queue_loop(dispatch_queue_t queue)
{
    return queue->loop;
}

static void dispatch(dispatch_queue_t queue, void *context, dispatch_function_t function, bool *done)
{
    struct work *work = allocate(sizeof *work);
    work->event.perform = work_perform;
    work->function = function;
    work->context = context;
    work->done = done;
    source_post(queue->source, &work->event);
}

/* Queues work and returns. */
API void dispatch_async_f(dispatch_queue_t queue, void *context, dispatch_function_t work)
{
    dispatch(queue, context, work, NULL);
}

/* Queues work, and returns once it is done. */
API void dispatch_sync_f(dispatch_queue_t queue, void *context, dispatch_function_t work)
{
    bool done = false;
    if (CFRunLoopGetCurrent() == queue->loop)
        fail("dispatch_sync_f on the queue's own thread: a deadlock on a Mac");
    dispatch(queue, context, work, &done);
    pthread_mutex_lock(&lock);
    while (!done)
        pthread_cond_wait(&queue_changed, &lock);
    pthread_mutex_unlock(&lock);
}

static void stop_queue(void *loop)
{
    CFRunLoopStop(loop);
}

/* Drops the last reference of a queue; work submitted before is still performed. */
API void dispatch_release(void *object)
{
    dispatch_queue_t queue = object;
    dispatch_async_f(queue, queue->loop, stop_queue);
}
