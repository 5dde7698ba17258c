/* Where an array lies in the payload of the bins, from their schema: just so much JSON as this needs. */
#ifndef SCHEMA_H
#define SCHEMA_H

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "sha256.h"

/* ---- JSON: a text that is walked once, never past its end ---- */

typedef struct {
    const char *at, *end;
    bool bad;
} Text;

static bool fail(Text *text) {
    text->bad = true;
    text->at = text->end;
    return false;
}

static void blanks(Text *text) {
    while (text->at < text->end && *text->at && strchr(" \t\r\n", *text->at)) text->at++;
}

static bool take(Text *text, char wanted) {
    blanks(text);
    if (text->at == text->end || *text->at != wanted) return false;
    text->at++;
    return true;
}

/* Whether the list or object has another entry; to be asked before each, `first` at the first. */
static bool more(Text *text, char close, bool first) {
    if (text->bad || take(text, close)) return false;
    return first || take(text, ',') || fail(text);
}

/* A string's characters between its quotes, escapes as they are. */
static bool string(Text *text, const char **start, size_t *size) {
    if (!take(text, '"')) return fail(text);
    *start = text->at;
    while (text->at < text->end && *text->at != '"') text->at += *text->at == '\\' && text->end - text->at > 1 ? 2 : 1;
    *size = (size_t)(text->at - *start);
    return take(text, '"') || fail(text);
}

static bool key(Text *text, const char **start, size_t *size) {
    return string(text, start, size) && (take(text, ':') || fail(text));
}

static bool is(const char *start, size_t size, const char *wanted) {
    return size == strlen(wanted) && !memcmp(start, wanted, size);
}

/* A value that is not wanted. */
static void skip(Text *text, int depth) {
    const char *start;
    size_t size;
    if (depth > 32) {
        fail(text);
    } else if (take(text, '{')) {
        for (bool first = true; more(text, '}', first); first = false)
            if (key(text, &start, &size)) skip(text, depth + 1);
    } else if (take(text, '[')) {
        for (bool first = true; more(text, ']', first); first = false) skip(text, depth + 1);
    } else if (text->at < text->end && *text->at == '"') {
        string(text, &start, &size);
    } else { /* a number, true, false or null */
        start = text->at;
        while (text->at < text->end && !strchr(",]} \t\r\n", *text->at)) text->at++;
        if (text->at == start) fail(text);
    }
}

/* How many values an array of this shape has. */
static uint64_t shape(Text *text) {
    uint64_t values = 1;
    if (!take(text, '[')) return fail(text);
    for (bool first = true; more(text, ']', first); first = false) {
        uint64_t length = 0;
        blanks(text);
        const char *start = text->at;
        while (text->at < text->end && *text->at >= '0' && *text->at <= '9' && length < UINT32_MAX)
            length = 10 * length + (uint64_t)(*text->at++ - '0');
        if (text->at == start || length > UINT32_MAX || (values *= length) > UINT32_MAX) return fail(text);
    }
    return values;
}

/* ---- the schema: where the wanted array lies in the payload ---- */

typedef struct {
    bool known;
    uint32_t id;            /* of the bins that it describes */
    uint64_t first, values; /* the wanted array's place in their payload; no values where they do not have it */
    uint64_t count;         /* what a bin has in all */
} Schema;

static void read_array(Text *text, const char *wanted, Schema *schema) {
    const char *start, *name = "";
    size_t size, name_size = 0;
    uint64_t values = 0;
    if (!take(text, '{')) fail(text);
    for (bool first = true; more(text, '}', first); first = false) {
        if (!key(text, &start, &size)) return;
        if (is(start, size, "name")) string(text, &name, &name_size);
        else if (is(start, size, "shape")) values = shape(text);
        else skip(text, 0);
    }
    if (is(name, name_size, wanted)) schema->first = schema->count, schema->values = values;
    schema->count += values;
}

static void read_schema(const uint8_t *json, size_t json_size, const char *wanted, Schema *schema) {
    Text text = {(const char *)json, (const char *)json + json_size, false};
    Schema found = {true, sha256_id(json, json_size), 0, 0, 0};
    const char *start;
    size_t size;
    if (schema->known && schema->id == found.id) return;
    if (!take(&text, '{')) fail(&text);
    for (bool first = true; more(&text, '}', first); first = false) {
        if (!key(&text, &start, &size)) break;
        if (is(start, size, "arrays") && take(&text, '['))
            for (bool one = true; more(&text, ']', one); one = false) read_array(&text, wanted, &found);
        else skip(&text, 0);
    }
    if (text.bad) {
        fprintf(stderr, "a schema that cannot be read is passed over\n");
        return;
    }
    if (!found.values) fprintf(stderr, "schema %08" PRIx32 " has no array %s\n", found.id, wanted);
    *schema = found;
}

#endif
