/*
 * Preloaded into a process, this kills it before its n-th system call that changes something which
 * outlives it: BPF maps, pins and links, what rtnetlink sets, files and directories.
 *
 * kill_point_arm(n, pinned) starts to count. Without pinned, maps belong to this process alone until
 * it has made a directory for them. Permissions (chmod) and locks are not counted: a lock ends with
 * its process, and no start depends on permissions.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static atomic_long reached;
static long wanted;
static int armed, outlive;

void kill_point_arm(long n, int pinned)
{
	reached = 0;
	wanted = n;
	outlive = pinned;
	armed = 1;
}

static void changes(void)
{
	if (!armed || atomic_fetch_add(&reached, 1) + 1 != wanted)
		return;
	kill(getpid(), SIGKILL);
	for (;;)
		pause();
}

static int is_bpf_change(long command)
{
	switch (command) {
	case BPF_MAP_UPDATE_ELEM:
	case BPF_MAP_DELETE_ELEM:
	case BPF_MAP_UPDATE_BATCH:
	case BPF_MAP_DELETE_BATCH:
		return outlive;
	case BPF_OBJ_PIN:
	case BPF_PROG_ATTACH:
	case BPF_PROG_DETACH:
	case BPF_LINK_CREATE:
	case BPF_LINK_UPDATE:
	case BPF_LINK_DETACH:
		return 1;
	}
	return 0;
}

/* Requests to rtnetlink come in fours: NEW, DEL, GET, SET. */
static void sends(int fd, const void *data, size_t size)
{
	int domain = 0;
	socklen_t length = sizeof(domain);

	if (size < 16 || getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length))
		return;
	if (domain == AF_NETLINK && (((const unsigned short *)data)[2] & 3) != 2)
		changes();
}

/* Not pipes, terminals and eventfds. */
static void writes(int fd)
{
	struct stat found;

	if (!fstat(fd, &found) && S_ISREG(found.st_mode))
		changes();
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

long syscall(long number, ...)
{
	long (*real)(long, ...) = dlsym(RTLD_NEXT, "syscall");
	long a[6];
	va_list list;

	va_start(list, number);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(list, long);
	va_end(list);
	if (number == SYS_bpf && is_bpf_change(a[0]))
		changes();
	return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

ssize_t send(int fd, const void *data, size_t size, int flags)
{
	sends(fd, data, size);
	return REAL(send)(fd, data, size, flags);
}

int open64(const char *path, int flags, ...)
{
	va_list list;

	va_start(list, flags);
	mode_t mode = va_arg(list, mode_t);
	va_end(list);
	if (flags & (O_CREAT | O_TRUNC))
		changes();
	return REAL(open64)(path, flags, mode);
}

ssize_t write(int fd, const void *data, size_t size)
{
	writes(fd);
	return REAL(write)(fd, data, size);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at)
{
	writes(fd);
	return REAL(pwrite64)(fd, data, size, at);
}

int ftruncate64(int fd, off64_t size)
{
	writes(fd);
	return REAL(ftruncate64)(fd, size);
}

int posix_fallocate64(int fd, off64_t at, off64_t size)
{
	writes(fd);
	return REAL(posix_fallocate64)(fd, at, size);
}

#define CHANGES(name, parameters, arguments)                                                       \
	int name parameters                                                                        \
	{                                                                                          \
		changes();                                                                         \
		return REAL(name) arguments;                                                       \
	}

CHANGES(rename, (const char *from, const char *to), (from, to))
CHANGES(unlink, (const char *path), (path))
CHANGES(rmdir, (const char *path), (path))

int mkdir(const char *path, mode_t mode)
{
	changes();
	outlive = 1;
	return REAL(mkdir)(path, mode);
}
