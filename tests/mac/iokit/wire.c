/*
 * The connection to the kernel: a socket named in the environment, opened at the first call of this process, and a
 * thread that reads it.  Runs in each process of a software Mac.
 */
#include "internal.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define HEADER 16

/* A call waiting for its answer; on the stack of its thread. */
struct waiting {
    struct waiting *next;
    uint32_t tag;
    bool answered;
    struct message answer;
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int kernel = -1;

/* Serializes frames. */
static pthread_mutex_t sending = PTHREAD_MUTEX_INITIALIZER;

/* Guards the rest. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t arrived = PTHREAD_COND_INITIALIZER;
static struct waiting *all_waiting;
static uint32_t last_tag;
static bool gone;

static void put(struct message *message, const void *bytes, size_t length)
{
    if (message->length + length > message->room) {
        message->room = 2 * (message->length + length);
        message->bytes = realloc(message->bytes, message->room);
        if (message->bytes == NULL)
            fail("out of memory");
    }
    if (length != 0)
        memcpy(message->bytes + message->length, bytes, length);
    message->length += length;
}

void put_u32(struct message *message, uint32_t number)
{
    put(message, &number, sizeof number);
}

void put_u64(struct message *message, uint64_t number)
{
    put(message, &number, sizeof number);
}

void put_bytes(struct message *message, const void *bytes, size_t length)
{
    put_u32(message, (uint32_t)length);
    put(message, bytes, length);
}

void put_text(struct message *message, const char *text)
{
    put_bytes(message, text, strlen(text));
}

void message_begin(struct message *message, enum call call)
{
    memset(message, 0, sizeof *message);
    put_u32(message, 0); /* the length, set later */
    put_u32(message, call);
    put_u32(message, 0);
    put_u32(message, 0);
}

void message_free(struct message *message)
{
    free(message->bytes);
    message->bytes = NULL;
}

static void get(struct message *message, void *bytes, size_t length)
{
    if (message->missing || message->length - message->at < length) {
        message->missing = true;
        memset(bytes, 0, length);
        return;
    }
    memcpy(bytes, message->bytes + message->at, length);
    message->at += length;
}

uint32_t get_u32(struct message *message)
{
    uint32_t number;
    get(message, &number, sizeof number);
    return number;
}

uint64_t get_u64(struct message *message)
{
    uint64_t number;
    get(message, &number, sizeof number);
    return number;
}

const uint8_t *get_bytes(struct message *message, size_t *length)
{
    const uint8_t *bytes;
    *length = get_u32(message);
    if (message->missing || message->length - message->at < *length) {
        message->missing = true;
        *length = 0;
        return message->bytes;
    }
    bytes = message->bytes + message->at;
    message->at += *length;
    return bytes;
}

void get_text(struct message *message, char *text, size_t size)
{
    size_t length;
    const uint8_t *bytes = get_bytes(message, &length);
    if (length > size - 1)
        length = size - 1;
    memcpy(text, bytes, length);
    text[length] = 0;
}

/* Reads everything; false if the kernel has closed the socket. */
static bool receive(void *bytes, size_t length)
{
    uint8_t *to = bytes;
    while (length != 0) {
        ssize_t got = recv(kernel, to, length, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        to += got;
        length -= (size_t)got;
    }
    return true;
}

static void answer(uint32_t tag, struct message *message)
{
    pthread_mutex_lock(&lock);
    for (struct waiting *each = all_waiting; each != NULL; each = each->next)
        if (each->tag == tag) {
            each->answer = *message;
            each->answered = true;
            message->bytes = NULL;
        }
    pthread_cond_broadcast(&arrived);
    pthread_mutex_unlock(&lock);
    message_free(message);
}

static void *read_kernel(void *unused)
{
    uint32_t header[HEADER / 4];
    (void)unused;
    while (receive(header, sizeof header)) {
        struct message message = {.bytes = allocate(header[0] + 1), .length = header[0]};
        if (!receive(message.bytes, header[0])) {
            message_free(&message);
            break;
        }
        switch (header[1]) {
        case REPLY:
            answer(header[3], &message);
            continue;
        case COMPLETION:
            completion_arrived(&message);
            break;
        case NOTIFICATION:
            notification_arrived(&message);
            break;
        case POWER:
            power_arrived(&message);
            break;
        default:
            fail("the kernel sent a frame of unknown kind %u", header[1]);
        }
        message_free(&message);
    }
    pthread_mutex_lock(&lock);
    gone = true;
    pthread_cond_broadcast(&arrived);
    pthread_mutex_unlock(&lock);
    return NULL;
}

static void connect_to_kernel(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *path = getenv("SOFTWARE_MAC");
    pthread_t thread;
    sigset_t all, before;
    if (path == NULL)
        fail("the environment variable SOFTWARE_MAC must name a kernel's socket");
    if (strlen(path) >= sizeof address.sun_path)
        fail("SOFTWARE_MAC is too long: %s", path);
    strcpy(address.sun_path, path);
    kernel = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (kernel < 0 || connect(kernel, (struct sockaddr *)&address, sizeof address) != 0)
        fail("no kernel listens on SOFTWARE_MAC=%s: %s", path, strerror(errno));
    /* a Mac has no such thread that could receive a signal */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (pthread_create(&thread, NULL, read_kernel, NULL) != 0)
        fail("cannot create a thread");
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_detach(thread);
}

static bool send_frame(struct message *message, uint32_t tag)
{
    uint32_t length = (uint32_t)(message->length - HEADER), euid = geteuid();
    size_t at = 0;
    memcpy(message->bytes, &length, sizeof length);
    memcpy(message->bytes + 8, &euid, sizeof euid);
    memcpy(message->bytes + 12, &tag, sizeof tag);
    pthread_mutex_lock(&sending);
    while (at < message->length) {
        ssize_t sent = send(kernel, message->bytes + at, message->length - at, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            break;
        at += (size_t)sent;
    }
    pthread_mutex_unlock(&sending);
    return at == message->length;
}

int message_call(struct message *message)
{
    struct waiting waiting = {.next = NULL};
    bool sent;
    pthread_once(&once, connect_to_kernel);
    pthread_mutex_lock(&lock);
    if (++last_tag == 0)
        ++last_tag;
    waiting.tag = last_tag;
    waiting.next = all_waiting;
    all_waiting = &waiting;
    pthread_mutex_unlock(&lock);
    sent = send_frame(message, waiting.tag);
    message_free(message);
    pthread_mutex_lock(&lock);
    while (sent && !waiting.answered && !gone)
        pthread_cond_wait(&arrived, &lock);
    for (struct waiting **each = &all_waiting; *each != NULL; each = &(*each)->next)
        if (*each == &waiting) {
            *each = waiting.next;
            break;
        }
    pthread_mutex_unlock(&lock);
    *message = waiting.answer; /* empty if none */
    return waiting.answered ? (int)get_u32(message) : MACH_SEND_INVALID_DEST;
}

int message_result(struct message *message)
{
    int result = message_call(message);
    message_free(message);
    return result;
}

void message_send(struct message *message)
{
    pthread_once(&once, connect_to_kernel);
    send_frame(message, 0);
    message_free(message);
}
