/*
 * The protocol between a process and the kernel, on the kernel's socket; tests/mac/kernel/wire.py is the other side.
 *
 * A frame is four 32-bit numbers, the length of the arguments, an `enum call`, the effective uid of the caller and a
 * tag; then the arguments.  A number is 32 or 64 bits, bytes follow their 32-bit length; all little-endian.  A request
 * with a tag other than 0 is answered by a REPLY with that tag, whose first number is an IOReturn.
 */
#ifndef SOFTWARE_MAC_WIRE_H
#define SOFTWARE_MAC_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum call {
    /* from the kernel */
    REPLY = 1,
    COMPLETION = 2,
    NOTIFICATION = 3,
    POWER = 4,
    /* the registry */
    MATCH = 10,
    ITERATOR_NEXT = 11,
    ITERATOR_VALID = 12,
    ITERATOR_RESET = 13,
    OBJECT_RELEASE = 14,
    CHILDREN = 15,
    PARENT = 16,
    DESCRIBE = 17,
    PROPERTY = 18,
    CONFORMS = 19,
    WAIT_QUIET = 20,
    SUBSCRIBE = 21,
    SYSTEM_VERSION = 22,
    /* power */
    POWER_REGISTER = 30,
    POWER_DEREGISTER = 31,
    POWER_ALLOW = 32,
    /* user clients */
    SERVICE_OPEN = 40,
    SERVICE_CLOSE = 41,
    /* of a device */
    DEVICE_OPEN = 50,
    DEVICE_CLOSE = 51,
    DEVICE_STATE = 52,
    CONFIGURATION_DESCRIPTOR = 53,
    SET_CONFIGURATION = 54,
    RESET_DEVICE = 55,
    RE_ENUMERATE = 56,
    SUSPEND = 57,
    ABORT_PIPE_ZERO = 58,
    FIND_INTERFACES = 59,
    DEVICE_REQUEST = 60,
    DEVICE_REQUEST_SYNC = 61,
    /* of an interface */
    INTERFACE_OPEN = 70,
    INTERFACE_CLOSE = 71,
    INTERFACE_STATE = 72,
    PIPE_PROPERTIES = 73,
    ENDPOINT_PROPERTIES = 74,
    SET_ALTERNATE = 75,
    ABORT_PIPE = 76,
    CLEAR_STALL = 77,
    READ = 78,
    WRITE = 79,
    WRITE_SYNC = 80,
    READ_ISOC = 81,
    WRITE_ISOC = 82,
    FRAME_NUMBER = 83,
};

struct message {
    uint8_t *bytes;
    size_t length, room;
    size_t at;    /* read position */
    bool missing; /* a read went past the end */
};

/* An empty message of one call; `put_` adds to it. */
void message_begin(struct message *message, enum call call);
void message_free(struct message *message);
void put_u32(struct message *message, uint32_t number);
void put_u64(struct message *message, uint64_t number);
void put_bytes(struct message *message, const void *bytes, size_t length);
void put_text(struct message *message, const char *text);
uint32_t get_u32(struct message *message);
uint64_t get_u64(struct message *message);
/* Points into the message. */
const uint8_t *get_bytes(struct message *message, size_t *length);
/* Copies bytes, at most `size`. */
void get_text(struct message *message, char *text, size_t size);

/*
 * Sends a message and waits for the answer; returns its IOReturn.  Frees the sent message; the rest of the answer is in
 * `message`, for message_free().  MACH_SEND_INVALID_DEST if the kernel has exited.
 */
int message_call(struct message *message);
/* The same for a call that returns only a result. */
int message_result(struct message *message);
/* Sends without waiting, and frees the message. */
void message_send(struct message *message);

#endif
