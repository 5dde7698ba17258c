/* What the examples use of libzmq's API, for computers that have the library (pyzmq brings it along) and no header of it. */
#ifndef ZMQ_H
#define ZMQ_H

#include <stddef.h>

#define ZMQ_SUB 2
#define ZMQ_SUBSCRIBE 6
#define ZMQ_UNSUBSCRIBE 7
#define ZMQ_LINGER 17
#define ZMQ_TCP_KEEPALIVE 34
#define ZMQ_TCP_KEEPALIVE_CNT 35
#define ZMQ_TCP_KEEPALIVE_IDLE 36
#define ZMQ_TCP_KEEPALIVE_INTVL 37
#define ZMQ_CONFLATE 54
#define ZMQ_CONNECT_TIMEOUT 79
#define ZMQ_DONTWAIT 1
#define ZMQ_POLLIN 1

typedef struct {
    _Alignas(void *) unsigned char opaque[64];
} zmq_msg_t;

typedef struct {
    void *socket;
    int fd;
    short events;
    short revents;
} zmq_pollitem_t;

void *zmq_ctx_new(void);
int zmq_ctx_term(void *context);
void *zmq_socket(void *context, int type);
int zmq_setsockopt(void *socket, int option, const void *value, size_t size);
int zmq_connect(void *socket, const char *endpoint);
int zmq_close(void *socket);
int zmq_errno(void);
const char *zmq_strerror(int number);
int zmq_recv(void *socket, void *buffer, size_t size, int flags);
int zmq_poll(zmq_pollitem_t *items, int count, long timeout_ms);
int zmq_msg_init(zmq_msg_t *message);
int zmq_msg_recv(zmq_msg_t *message, void *socket, int flags);
void *zmq_msg_data(zmq_msg_t *message);
size_t zmq_msg_size(const zmq_msg_t *message);
int zmq_msg_close(zmq_msg_t *message);

#endif
