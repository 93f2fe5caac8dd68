/* The physical limit of running commands: how fast this machine can spawn
 * `sh -c COMMAND`, capture stdout and stderr by pipes, and wait for the end.
 *
 * usage: limit COMMAND COUNT PROCESSES
 * COUNT commands in each of PROCESSES processes at once; prints commands per second.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void drain(int out, int err) {
    char buffer[65536];
    struct pollfd fds[2] = {{out, POLLIN, 0}, {err, POLLIN, 0}};
    for (int open = 2; open > 0;) {
        poll(fds, 2, -1);
        for (int i = 0; i < 2; i++)
            if (fds[i].fd >= 0 && fds[i].revents &&
                read(fds[i].fd, buffer, sizeof buffer) <= 0) {
                fds[i].fd = -1;
                open--;
            }
    }
}

static void run_one(char *command) {
    char *argv[] = {"sh", "-c", command, NULL};
    int out[2], err[2], status;
    pid_t pid;
    posix_spawn_file_actions_t actions;
    if (pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC)) exit(3);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    posix_spawn_file_actions_adddup2(&actions, err[1], 2);
    if (posix_spawn(&pid, "/bin/sh", &actions, NULL, argv, environ)) exit(4);
    posix_spawn_file_actions_destroy(&actions);
    close(out[1]);
    close(err[1]);
    drain(out[0], err[0]);
    close(out[0]);
    close(err[0]);
    waitpid(pid, &status, 0);
    if (!WIFEXITED(status) || WEXITSTATUS(status)) exit(5);
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: limit COMMAND COUNT PROCESSES\n");
        return 2;
    }
    int count = atoi(argv[2]), processes = atoi(argv[3]), go[2], failed = 0;
    if (processes < 1 || processes > 64 || pipe(go)) return 2;
    for (int i = 0; i < processes; i++)
        if (!fork()) {
            char byte;
            if (read(go[0], &byte, 1) != 1) _exit(9);
            for (int k = 0; k < count; k++) run_one(argv[1]);
            _exit(0);
        }
    usleep(100000);
    double began = seconds();
    for (int i = 0; i < processes; i++)
        if (write(go[1], "", 1) != 1) return 2;
    for (int i = 0, status; i < processes; i++) {
        wait(&status);
        if (status) failed = 1;
    }
    printf("%.1f\n", count * processes / (seconds() - began));
    return failed;
}
