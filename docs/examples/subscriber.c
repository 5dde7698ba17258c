/* Prints one array of what `rtdsae serve` publishes, a line a bin. Written from docs/wire.md alone; needs libzmq.
 *
 *     cc -std=c11 subscriber.c -lzmq -o subscriber
 *     ./subscriber tcp://127.0.0.1:5556 factors every          every bin, holes told
 *     ./subscriber tcp://127.0.0.1:5556 factors newest 1000    always the newest bin; ends after 1000
 *
 * A line is `seq t_bin flags value value ...`, on stdout; whatever else there is to say goes to stderr. */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zmq.h>

#include "schema.h"

enum { TOPIC = 8, HEADER = 64, VERSION = 1, SHOWN = 8 };
static const char *const flag_names[] = {"gap", "anchored", "late", "swapped", "backfill"};

/* ---- a bin ---- */

static uint64_t number(const uint8_t *at, int bytes) { /* little-endian, whatever this computer is */
    uint64_t value = 0;
    while (bytes--) value = value << 8 | at[bytes];
    return value;
}

static double f64(const uint8_t *at) {
    uint64_t bits = number(at, 8);
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float f32(const uint8_t *at) {
    uint32_t bits = (uint32_t)number(at, 4);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void print_bin(const uint8_t *frame, const Schema *schema) {
    uint64_t flags = number(frame + 10, 2);
    const char *between = "";
    printf("%" PRIu64 " %.9f ", number(frame + 16, 8), f64(frame + 32));
    for (size_t bit = 0; bit < sizeof flag_names / sizeof *flag_names; bit++)
        if (flags >> bit & 1) printf("%s%s", between, flag_names[bit]), between = "+";
    printf("%s", *between ? "" : "-");
    for (uint64_t i = 0; i < schema->values && i < SHOWN; i++) printf(" %.9g", f32(frame + HEADER + 4 * (schema->first + i)));
    printf("\n");
}

/* ---- the program ---- */

typedef struct {
    const char *array;
    bool every;
    void *bins, *schemas; /* sockets; the same one where every bin is wanted */
    Schema schema;
    bool begun;
    uint32_t run;
    uint64_t next; /* the seq that is due */
    uint64_t printed;
    time_t asked;
} Subscriber;

static void ask_for_schema(Subscriber *me) {
    if (time(NULL) == me->asked) return; /* once a second is enough */
    me->asked = time(NULL);
    zmq_setsockopt(me->schemas, ZMQ_UNSUBSCRIBE, "schema\0", TOPIC);
    zmq_setsockopt(me->schemas, ZMQ_SUBSCRIBE, "schema\0", TOPIC);
}

/* Tells restarts and holes; false for a bin that came before. */
static bool follow(Subscriber *me, uint32_t run, uint64_t seq) {
    if (me->begun && run != me->run) {
        fprintf(stderr, "the daemon restarted: run %08" PRIx32 "\n", run);
        me->next = 0;
    }
    if (!me->begun) me->next = seq;
    if (me->every && seq > me->next) fprintf(stderr, "%" PRIu64 " bins are missing before seq %" PRIu64 "\n", seq - me->next, seq);
    me->begun = true;
    me->run = run;
    if (seq < me->next) {
        fprintf(stderr, "seq %" PRIu64 " is passed over: it came before\n", seq);
        return false;
    }
    me->next = seq + 1;
    return true;
}

static void take_bin(Subscriber *me, const uint8_t *frame, size_t size) {
    if (size < HEADER || number(frame + 8, 2) != VERSION || size != HEADER + 4 * number(frame + 60, 4)) {
        fprintf(stderr, "a frame of %zu bytes that is no bin of version %d is passed over\n", size, VERSION);
        return;
    }
    uint32_t id = (uint32_t)number(frame + 56, 4);
    uint64_t seq = number(frame + 16, 8);
    if (!follow(me, (uint32_t)number(frame + 12, 4), seq)) return;
    if (!me->schema.known || id != me->schema.id || number(frame + 60, 4) != me->schema.count) {
        fprintf(stderr, "seq %" PRIu64 " is passed over: its schema %08" PRIx32 " has not come\n", seq, id);
        ask_for_schema(me);
    } else if (me->schema.values) {
        print_bin(frame, &me->schema);
        me->printed++;
    }
}

static void take_frame(Subscriber *me, void *socket) {
    zmq_msg_t message; /* as large as what comes */
    zmq_msg_init(&message);
    if (zmq_msg_recv(&message, socket, ZMQ_DONTWAIT) >= TOPIC) {
        const uint8_t *frame = zmq_msg_data(&message);
        size_t size = zmq_msg_size(&message);
        if (!memcmp(frame, "schema\0", TOPIC)) read_schema(frame + TOPIC, size - TOPIC, me->array, &me->schema);
        else if (!memcmp(frame, "latents", TOPIC)) take_bin(me, frame, size);
    }
    zmq_msg_close(&message);
}

static void *open_socket(void *context, const char *endpoint, bool newest) {
    int on = 1, none = 0, silent_s = 2, probes = 3, connect_ms = 2000;
    void *socket = zmq_socket(context, ZMQ_SUB);
    zmq_setsockopt(socket, ZMQ_LINGER, &none, sizeof none);
    /* A daemon's computer that fails says no goodbye: ask it for a sign of life, and else connect anew. */
    zmq_setsockopt(socket, ZMQ_TCP_KEEPALIVE, &on, sizeof on);
    zmq_setsockopt(socket, ZMQ_TCP_KEEPALIVE_IDLE, &silent_s, sizeof silent_s);
    zmq_setsockopt(socket, ZMQ_TCP_KEEPALIVE_INTVL, &on, sizeof on);
    zmq_setsockopt(socket, ZMQ_TCP_KEEPALIVE_CNT, &probes, sizeof probes);
    zmq_setsockopt(socket, ZMQ_CONNECT_TIMEOUT, &connect_ms, sizeof connect_ms);
    if (newest) zmq_setsockopt(socket, ZMQ_CONFLATE, &on, sizeof on); /* before it connects */
    if (zmq_connect(socket, endpoint)) {
        fprintf(stderr, "%s: %s; an endpoint is like tcp://127.0.0.1:5556\n", endpoint, zmq_strerror(zmq_errno()));
        exit(2);
    }
    return socket;
}

int main(int arguments, char **argument) {
    if (arguments < 4 || arguments > 5 || (strcmp(argument[3], "every") && strcmp(argument[3], "newest"))) {
        fprintf(stderr, "usage: %s ENDPOINT ARRAY every|newest [BINS]\n", argument[0]);
        return 2;
    }
    uint64_t wanted = arguments == 5 ? strtoull(argument[4], NULL, 10) : UINT64_MAX;
    void *context = zmq_ctx_new();
    Subscriber me = {.array = argument[2], .every = !strcmp(argument[3], "every")};
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ);

    /* Every bin: schemas and bins on one socket, in the order in which they were sent. The newest bin: a socket that
     * conflates keeps one message of whatever kind, so that schemas need another. */
    me.bins = open_socket(context, argument[1], !me.every);
    me.schemas = me.every ? me.bins : open_socket(context, argument[1], false);
    zmq_setsockopt(me.schemas, ZMQ_SUBSCRIBE, "schema\0", TOPIC);
    zmq_setsockopt(me.bins, ZMQ_SUBSCRIBE, "latents", TOPIC);

    zmq_pollitem_t items[] = {{me.schemas, 0, ZMQ_POLLIN, 0}, {me.bins, 0, ZMQ_POLLIN, 0}};
    int sockets = me.every ? 1 : 2;
    while (me.printed < wanted) {
        if (zmq_poll(items, sockets, -1) < 0) continue; /* a signal */
        for (int i = 0; i < sockets; i++)
            if (items[i].revents) take_frame(&me, items[i].socket);
    }

    if (!me.every) zmq_close(me.schemas);
    zmq_close(me.bins);
    zmq_ctx_term(context);
    return 0;
}
