/* The queue and its workers: included once, by stub.c. Times are seconds of the monotonic clock. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define STEPS 64
#define SENTENCE "All the rivers run into the sea, yet the sea is not full. "

typedef struct { double arrival, start, end, told; } Job;      /* start < 0: queued; told: of its final state */
typedef struct { double free; long job; } Worker;              /* job -1: has had none */
typedef struct { double at; int count; } Step;
typedef struct { uint64_t body; int count; } Row;

static Job *jobs;
static long job_count, job_room, next_queued, cancelled_in_queue;
static char *was_cancelled;
static char (*request_ids)[64]; /* of a job of several rows, ending in ROWSx1; else empty */
static Worker *workers;
static int worker_count, worker_room, next_step, to_remove;
static Step steps[STEPS] = {{0, 1}};
static int step_count = 1;
static Row *rows;
static size_t row_count, row_room, row_twice;
static char service = 'c';
static double service_a, service_b, retention = 1e18;
static uint64_t seed = 1;
static double began = -1, last_told; /* the first submission, the last final answer */
static long told_count, max_queue;
#define CHOICE "{\"index\":%d,\"text\":\"" SENTENCE SENTENCE SENTENCE SENTENCE "\",\"finish_reason\":\"stop\"}"
#define HEAD_OF_OUTPUT "\"output\":[{\"id\":\"cmpl-%s\",\"object\":\"text_completion\",\"model\":\"stub\",\"choices\":["
#define END_OF_OUTPUT "],\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":%d,\"total_tokens\":%d}}]}"

static double seconds(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

static void *grown(void *old, size_t size) {
    void *block = realloc(old, size);
    if (!block) exit(70);
    return block;
}

/* The n-th number of a seeded sequence, in (0, 1): splitmix64, which bounds.py repeats. */
static double uniform(uint64_t n) {
    uint64_t x = seed * 0x9E3779B97F4A7C15u + (n + 1) * 0xD1342543DE82EF95u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    x ^= x >> 31;
    return ((x >> 11) + 0.5) / 9007199254740992.0;
}

static double service_time(long n) {
    if (service == 'e') return -log(uniform(2 * n)) * service_a;
    if (service == 'l')
        return service_a * exp(service_b * sqrt(-2 * log(uniform(2 * n))) * cos(2 * M_PI * uniform(2 * n + 1)));
    return service_a;
}

static void sink(int i) {
    for (int child; (child = 2 * i + 1) < worker_count; i = child) {
        if (child + 1 < worker_count && workers[child + 1].free < workers[child].free) child++;
        if (workers[i].free <= workers[child].free) return;
        Worker held = workers[i];
        workers[i] = workers[child];
        workers[child] = held;
    }
}

static void heapify(void) {
    for (int i = worker_count / 2; i >= 0; i--) sink(i);
}

/* Bring the workers up to the plan at `now`. A worker that goes is the next one to be free, when it is free. */
static void follow_plan(double now) {
    while (next_step < step_count && began + steps[next_step].at <= now) {
        int change = steps[next_step].count - (next_step ? steps[next_step - 1].count : 0);
        double at = began + steps[next_step++].at;
        to_remove += change < 0 ? -change : 0;
        for (; change > 0; change--) {
            if (to_remove) {
                to_remove--;
                continue;
            }
            if (worker_count == worker_room) {
                worker_room = worker_room ? worker_room * 2 : 256;
                workers = grown(workers, worker_room * sizeof *workers);
            }
            workers[worker_count++] = (Worker){at, -1};
        }
        heapify();
    }
}

/* Start every job that has started by `now`. */
static void start_jobs(double now) {
    while (to_remove && worker_count && workers[0].free <= now) {
        workers[0] = workers[--worker_count];
        to_remove--;
        sink(0);
    }
    for (; next_queued < job_count && worker_count && workers[0].free <= now; next_queued++) {
        Job *job = &jobs[next_queued];
        if (was_cancelled[next_queued]) {
            cancelled_in_queue--;
            continue;
        }
        job->start = job->arrival > workers[0].free ? job->arrival : workers[0].free;
        job->end = job->start + service_time(next_queued);
        workers[0] = (Worker){job->end, next_queued};
        sink(0);
    }
}

static void advance(double now) {
    if (began < 0) return;
    while (next_step < step_count && began + steps[next_step].at <= now) {
        start_jobs(began + steps[next_step].at);
        follow_plan(began + steps[next_step].at);
    }
    start_jobs(now);
}

static long queued(void) { return job_count - next_queued - cancelled_in_queue; }

static int running(double now) {
    int count = 0;
    for (int i = 0; i < worker_count; i++) count += workers[i].job >= 0 && workers[i].free > now;
    return count;
}

/* Count a body; rows are told apart by what they ask for. */
static void count_row(const char *body, size_t size) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < size; i++) hash = (hash ^ (unsigned char)body[i]) * 0x100000001b3u;
    hash += !hash;
    if (2 * row_count >= row_room) {
        size_t old_room = row_room;
        Row *old = rows;
        row_room = row_room ? row_room * 2 : 65536;
        rows = calloc(row_room, sizeof *rows);
        if (!rows) exit(70);
        for (size_t i = 0; i < old_room; i++) {
            size_t at = old[i].body & (row_room - 1);
            while (rows[at].body) at = (at + 1) & (row_room - 1);
            if (old[i].body) rows[at] = old[i];
        }
        free(old);
    }
    size_t at = hash & (row_room - 1);
    while (rows[at].body && rows[at].body != hash) at = (at + 1) & (row_room - 1);
    row_count += !rows[at].body;
    rows[at].body = hash;
    row_twice += ++rows[at].count == 2;
}

static int submit(double now, const char *body, size_t size, char *out) {
    if (began < 0) began = now;
    if (job_count == job_room) {
        job_room = job_room ? job_room * 2 : 65536;
        jobs = grown(jobs, job_room * sizeof *jobs);
        was_cancelled = grown(was_cancelled, job_room);
        request_ids = grown(request_ids, job_room * sizeof *request_ids);
    }
    char *id = memmem(body, size, "\"request_id\":\"", 14), *stop = id ? memchr(id + 14, '"', body + size - id - 14) : NULL;
    request_ids[job_count][0] = 0;
    if (stop && stop - id - 14 < 64) sprintf(request_ids[job_count], "%.*s", (int)(stop - id - 14), id + 14);
    was_cancelled[job_count] = 0;
    jobs[job_count++] = (Job){now, -1, -1, -1};
    advance(now);
    if (queued() > max_queue) max_queue = queued();
    count_row(body, size);
    return sprintf(out, "{\"id\":\"2f0a4c1e-6b1d-4a7e-9f39-%012ld-u1\",\"status\":\"IN_QUEUE\"}", job_count - 1);
}

static Job *find(double now, const char *id, long *number) {
    const char *digits = strlen(id) > 24 ? id + 24 : "";
    char *end;
    *number = strtol(digits, &end, 10);
    if (end == digits || *number >= job_count) return NULL;
    Job *job = &jobs[*number];
    return job->start >= 0 && job->end + retention < now ? NULL : job;
}

static int tell(double now, Job *job, long number, const char *id, char *out) {
    double delay = (job->start - job->arrival) * 1000;
    int queues = job->start < 0;
    if (was_cancelled[number] || (!queues && job->end <= now)) {
        if (job->told < 0) {
            job->told = last_told = now;
            told_count++;
        }
    }
    if (was_cancelled[number]) return sprintf(out, "{\"id\":\"%s\",\"status\":\"CANCELLED\"}", id);
    if (queues) return sprintf(out, "{\"id\":\"%s\",\"status\":\"IN_QUEUE\"}", id);
    if (job->end > now)
        return sprintf(out, "{\"id\":\"%s\",\"status\":\"IN_PROGRESS\",\"delayTime\":%.0f}", id, delay);
    char *request_id = request_ids[number], *count = strrchr(request_id, '-');
    int rows = count ? atoi(count + 1) : 1;
    int size = sprintf(out, "{\"id\":\"%s\",\"status\":\"COMPLETED\",\"workerId\":\"stub\",", id);
    size += sprintf(out + size, "\"delayTime\":%.0f,\"executionTime\":%.0f,", delay, (job->end - job->start) * 1000);
    size += sprintf(out + size, HEAD_OF_OUTPUT, count ? request_id : "1");
    for (int i = 0; i < rows; i++) size += sprintf(out + size, i ? "," CHOICE : CHOICE, i);
    return size + sprintf(out + size, END_OF_OUTPUT, 12 * rows, 60 * rows, 72 * rows);
}

static int cancel(double now, Job *job, long number, const char *id, char *out) {
    if (!was_cancelled[number] && (job->start < 0 || job->end > now)) {
        was_cancelled[number] = 1;
        cancelled_in_queue += job->start < 0;
        for (int i = 0; i < worker_count; i++)
            if (job->start >= 0 && workers[i].job == number) workers[i].free = now;
        heapify();
        job->end = now;
    }
    return sprintf(out, "{\"id\":\"%s\",\"status\":\"CANCELLED\"}", id);
}

static int health(double now, char *out) {
    int busy = running(now), next = next_step, ready = worker_count;
    if (began < 0 && steps[0].at <= 0) next = 1, ready = steps[0].count;
    int coming = next < step_count && steps[next].count > ready ? steps[next].count - ready : 0;
    int size = sprintf(out, "{\"jobs\":{\"completed\":%ld,\"failed\":0,\"retried\":0,", next_queued - busy);
    size += sprintf(out + size, "\"inProgress\":%d,\"inQueue\":%ld},", busy, queued());
    return size + sprintf(out + size,
                          "\"workers\":{\"idle\":%d,\"initializing\":%d,\"ready\":%d,\"running\":%d,\"throttled\":0,"
                          "\"unhealthy\":0}}", ready - busy, coming, ready, busy);
}
