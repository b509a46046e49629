// A program inside a sandbox that tries to type into its own terminal (TIOCSTI), as the request is
// written and with bits above the 32 that the kernel looks at. Exits 0 when every try was refused.
#include <errno.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int main() {
  const unsigned long requests[] = {TIOCSTI, (1ul << 32) | TIOCSTI, (1ul << 63) | TIOCSTI};
  int typed = 0;
  for (const unsigned long request : requests) {
    const char key = 'x';
    if (syscall(SYS_ioctl, 0, request, &key) == 0) ++typed;
    if (errno != EPERM) printf("refused with errno %d\n", errno);
  }
  printf("typed %d\n", typed);
  return typed;
}
