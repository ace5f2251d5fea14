/* What an emulated board needs to start a program of newlib: its vectors. */
#include <stdint.h>

extern uint32_t stack_top[];
extern void _start(void);

static void stop(void) {
  for (;;) {
  }
}

__attribute__((section(".vectors"), used)) static const void *const vectors[] = {
    stack_top, (void *)_start, (void *)stop, (void *)stop};
