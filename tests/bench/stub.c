/* An endpoint for measuring clients: Runpod's queue API with exact events, on one thread, with epoll.
 *
 * No job has a timer. What the queue and its workers look like is a function of time, so it is worked out when
 * somebody asks: a job that finds a free worker starts at its arrival, any other at the time the earliest worker
 * frees. With a latency a request counts as arrived that much later, and only its answer waits. stub.py starts it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "queue.h"

#define CONNECTIONS 4096
#define LARGEST_LIMIT 2000
#define HEAD "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"

enum { RUN, STATUS, CANCEL, HEALTH, OPERATIONS };
static const char *const NAMES[] = {"run", "status", "cancel", "health"};
/* Requests in any 10 s, and at once; health has no limit. */
static const int LIMITS[][2] = {{1000, 200}, {2000, 400}, {100, 20}, {0, 0}};
typedef struct { int fd, waits; unsigned generation; char *in, *out; size_t used, room, left, space; } Connection;
typedef struct { double due; int slot; unsigned generation; int operation; size_t size; char *text; } Answer;
static Connection connections[CONNECTIONS];
static Answer *answers;
static size_t first_answer, answer_count, answer_room;
static double windows[OPERATIONS][LARGEST_LIMIT];
static long accepted[OPERATIONS], requests[OPERATIONS], refused[OPERATIONS], unknown;
static int under_way[OPERATIONS];
static int limited, poller, timer;
static double latency, first_seen = -1, last_seen, cpu_before;

/* Whether a request is within the limits; it takes its place in the window when it is. */
static int admit(int operation, double now) {
    int most = LIMITS[operation][0];
    if (limited && most) {
        double *oldest = &windows[operation][accepted[operation] % most];
        if (under_way[operation] > LIMITS[operation][1]) return 0;
        if (accepted[operation] >= most && *oldest > now - 10) return 0;
        *oldest = now;
    }
    accepted[operation]++;
    return 1;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int report(char *out) {
    double *delays = grown(NULL, (told_count + 1) * sizeof *delays), sum = 0, busy = 0;
    long count = 0;
    for (long i = 0; i < job_count; i++) {
        if (jobs[i].start >= 0) busy += jobs[i].end - jobs[i].start;
        if (jobs[i].told >= 0 && jobs[i].end >= 0) sum += delays[count++] = jobs[i].told - jobs[i].end;
    }
    qsort(delays, count, sizeof *delays, ascending);
    double makespan = told_count ? last_told - began + 2 * latency : 0, capacity = 0;
    for (int i = 0; i < step_count; i++) {
        double until = i + 1 < step_count && steps[i + 1].at < makespan ? steps[i + 1].at : makespan;
        if (until > steps[i].at) capacity += (until - steps[i].at) * steps[i].count;
    }
    char *at = out;
    for (int round = 0; round < 2; round++) {
        at += sprintf(at, round ? "},\"refused\":{" : "{\"requests\":{");
        for (int i = 0; i < OPERATIONS; i++)
            at += sprintf(at, "%s\"%s\":%ld", i ? "," : "", NAMES[i], round ? refused[i] : requests[i]);
    }
    at += sprintf(at, "},\"unknown\":%ld,\"jobs\":%ld,\"told\":%ld,", unknown, job_count, told_count);
    at += sprintf(at, "\"rows\":%zu,\"twice\":%zu,\"max_queue\":%ld,", row_count, row_twice, max_queue);
    delays[count] = count ? delays[count - 1] : 0;
    at += sprintf(at, "\"detection_s\":{\"mean\":%.6f,\"p50\":%.6f,", count ? sum / count : 0, delays[count / 2]);
    at += sprintf(at, "\"p99\":%.6f,\"max\":%.6f},", delays[count * 99 / 100], delays[count]);
    for (long i = count = 0; i < job_count; i++)
        if (jobs[i].told >= 0) delays[count++] = jobs[i].told;
    qsort(delays, count, sizeof *delays, ascending);
    double most = count ? delays[(count * 9 + 9) / 10 - 1] - began + 2 * latency : 0;
    at += sprintf(at, "\"first_at\":%.6f,\"nine_tenths_s\":%.6f,", first_seen, most);
    at += sprintf(at, "\"utilisation\":%.4f,\"makespan_s\":%.6f,\"span_s\":%.6f,\"cpu_s\":%.6f}",
                  capacity > 0 ? busy / capacity : 0, makespan, last_seen - first_seen,
                  seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu_before);
    free(delays);
    return at - out;
}

static void reset(void) {
    job_count = next_queued = cancelled_in_queue = unknown = told_count = max_queue = 0;
    worker_count = next_step = to_remove = 0;
    memset(accepted, 0, sizeof accepted);
    memset(requests, 0, sizeof requests);
    memset(refused, 0, sizeof refused);
    if (rows) memset(rows, 0, row_room * sizeof *rows);
    row_count = row_twice = 0;
    began = first_seen = -1;
    last_seen = last_told = 0;
    cpu_before = seconds(CLOCK_PROCESS_CPUTIME_ID);
}

/* Answer one request: the body goes to `out`; returns its length, and tells the HTTP status and the operation. */
static int answer(double read_at, char *path, const char *body, size_t size, char *out, int *status, int *operation) {
    double now = read_at + latency;
    *operation = -1;
    *status = 200;
    path[strcspn(path, "?")] = 0;
    if (!strcmp(path, "/report")) return report(out);
    if (!strcmp(path, "/reset")) return reset(), sprintf(out, "{}");
    char *part[4] = {0}, *rest = path + 1;
    for (int i = 0; i < 4 && rest; i++) part[i] = strsep(&rest, "/");
    for (int i = 0; i < OPERATIONS; i++)
        if (part[2] && !strcmp(part[2], NAMES[i])) *operation = i;
    if (*operation < 0) return *status = 404, sprintf(out, "{\"error\":\"not found\"}");
    requests[*operation]++;
    under_way[*operation]++;
    if (*operation != HEALTH) {
        if (first_seen < 0) first_seen = read_at;
        last_seen = read_at;
    }
    if (!admit(*operation, now)) {
        refused[*operation]++;
        return *status = 429, sprintf(out, "{\"error\":\"too many requests\"}");
    }
    if (*operation == RUN) return submit(now, body, size, out);
    advance(now);
    if (*operation == HEALTH) return health(now, out);
    long number;
    Job *job = find(now, part[3] ? part[3] : "", &number);
    if (!job) return unknown++, *status = 404, sprintf(out, "{\"error\":\"job not found\"}");
    return *operation == STATUS ? tell(now, job, number, part[3], out) : cancel(now, job, number, part[3], out);
}

static void hang_up(int slot) {
    close(connections[slot].fd);
    connections[slot].fd = -1;
    connections[slot].generation++;
    connections[slot].used = connections[slot].left = connections[slot].waits = 0;
}

/* Send what waits; what the socket does not take waits until it does. */
static void flush_out(int slot) {
    Connection *c = &connections[slot];
    ssize_t sent = c->left ? send(c->fd, c->out, c->left, MSG_NOSIGNAL) : 0;
    if (sent < 0 && errno != EAGAIN) return hang_up(slot);
    if (sent > 0) memmove(c->out, c->out + sent, c->left -= sent);
    struct epoll_event wish = {EPOLLIN | (c->left ? EPOLLOUT : 0), {.u32 = slot}};
    if (c->waits != (c->left > 0)) epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &wish);
    c->waits = c->left > 0;
}

static void queue_out(int slot, const char *text, size_t size) {
    Connection *c = &connections[slot];
    if (c->left + size > c->space) c->out = grown(c->out, c->space = 2 * (c->left + size));
    memcpy(c->out + c->left, text, size);
    c->left += size;
}

static void arm(void) {
    if (!answer_count) return;
    double due = answers[first_answer].due;
    struct itimerspec at = {.it_value = {(time_t)due, (long)((due - (time_t)due) * 1e9) + 1}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
}

static void postpone(double due, int slot, int operation, const char *text, size_t size) {
    if (answer_count == answer_room) {
        size_t room = answer_room ? answer_room * 2 : 1024;
        Answer *more = grown(NULL, room * sizeof *more);
        for (size_t i = 0; i < answer_count; i++) more[i] = answers[(first_answer + i) % answer_room];
        free(answers);
        answers = more;
        first_answer = 0;
        answer_room = room;
    }
    Answer *last = &answers[(first_answer + answer_count++) % answer_room];
    *last = (Answer){due, slot, connections[slot].generation, operation, size, memcpy(grown(NULL, size), text, size)};
    if (answer_count == 1) arm();
}

static void send_due(void) {
    double now = seconds(CLOCK_MONOTONIC);
    for (; answer_count && answers[first_answer].due <= now; answer_count--) {
        Answer *due = &answers[first_answer];
        if (due->operation >= 0) under_way[due->operation]--;
        if (connections[due->slot].fd >= 0 && connections[due->slot].generation == due->generation) {
            queue_out(due->slot, due->text, due->size);
            flush_out(due->slot);
        }
        free(due->text);
        first_answer = (first_answer + 1) % answer_room;
    }
    arm();
}

/* The length of the request at the buffer's start, head and body; 0: not all of it is here. */
static size_t whole_request(Connection *c, char **body) {
    char *end = memmem(c->in, c->used, "\r\n\r\n", 4);
    if (!end) return 0;
    size_t length = 0;
    *body = end + 4;
    for (char *line = memchr(c->in, '\n', end - c->in); line && line < end; line = memchr(line, '\n', end - line))
        if (!strncasecmp(++line, "content-length:", 15)) length = strtoul(line + 15, NULL, 10);
    size_t whole = *body - c->in + length;
    return whole <= c->used ? whole : 0;
}

static void take_in(int slot) {
    static char text[65536], head[256];
    Connection *c = &connections[slot];
    if (c->room - c->used < 65536) c->in = grown(c->in, c->room = 2 * c->used + 131072);
    ssize_t got = recv(c->fd, c->in + c->used, c->room - c->used - 1, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) return hang_up(slot);
    c->used += got;
    double now = seconds(CLOCK_MONOTONIC);
    size_t whole;
    for (char *body; (whole = whole_request(c, &body));) {
        int status, operation;
        char *path = memchr(c->in, ' ', body - c->in), *stop = path ? memchr(path + 1, ' ', body - path - 1) : NULL;
        if (!stop || stop - path > 1000) return hang_up(slot);
        *stop = 0;
        int size = answer(now, path + 1, body, c->in + whole - body, text + sizeof head, &status, &operation);
        int length = sprintf(head, HEAD, status, status == 200 ? "OK" : "Refused", size);
        char *start = memcpy(text + sizeof head - length, head, length);
        memmove(c->in, c->in + whole, c->used -= whole);
        if (latency > 0) {
            postpone(now + 2 * latency, slot, operation, start, length + size);
        } else {
            queue_out(slot, start, length + size);
            if (operation >= 0) under_way[operation]--;
        }
    }
    if (latency <= 0) flush_out(slot);
}

static void welcome(int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK), slot = 0, yes = 1;
    while (slot < CONNECTIONS && connections[slot].fd >= 0) slot++;
    if (fd < 0) return;
    if (slot == CONNECTIONS) {
        close(fd);
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    connections[slot].fd = fd;
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &(struct epoll_event){EPOLLIN, {.u32 = slot}});
}

static void read_options(int count, char **given) {
    for (int i = 1; i < count; i++) {
        char *value = i + 1 < count ? given[i + 1] : "0";
        if (!strcmp(given[i], "--limits")) {
            limited = 1;
            continue;
        }
        if (!strcmp(given[i], "--service")) {
            service = *value;
            sscanf(value, "%*[a-z]:%lf:%lf", &service_a, &service_b);
        } else if (!strcmp(given[i], "--workers-at")) {
            step_count = 0;
            for (char *step; step_count < STEPS && (step = strsep(&value, ","));)
                sscanf(step, "%lf:%d", &steps[step_count].at, &steps[step_count].count), step_count++;
        } else if (!strcmp(given[i], "--seed")) {
            seed = strtoull(value, NULL, 10);
        } else if (!strcmp(given[i], "--latency")) {
            latency = atof(value);
        } else if (!strcmp(given[i], "--retention")) {
            retention = atof(value);
        } else {
            exit(64);
        }
        i++;
    }
}

int main(int count, char **given) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    read_options(count, given);
    for (int i = 0; i < CONNECTIONS; i++) connections[i].fd = -1;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 1024)) return 69;
    getsockname(listener, (struct sockaddr *)&address, &size);
    poller = epoll_create1(0);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &(struct epoll_event){EPOLLIN, {.u32 = CONNECTIONS}});
    epoll_ctl(poller, EPOLL_CTL_ADD, timer, &(struct epoll_event){EPOLLIN, {.u32 = CONNECTIONS + 1}});
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (struct epoll_event events[256];;) {
        int ready = epoll_wait(poller, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            unsigned slot = events[i].data.u32;
            uint64_t ticks;
            if (slot == CONNECTIONS) welcome(listener);
            else if (slot > CONNECTIONS) read(timer, &ticks, sizeof ticks) > 0 ? send_due() : (void)0;
            else if (connections[slot].fd < 0) continue;
            else if (events[i].events & EPOLLOUT) flush_out(slot);
            else take_in(slot);
        }
    }
}
