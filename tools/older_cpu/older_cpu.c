/* Preloaded by python -m tests.older_cpu: answers the patched cpuid instructions as a CPU with AVX2 and no more would.

   A patched one is 06 A2 instead of 0F A2. 06 is no instruction in 64-bit mode, so it raises SIGILL, and unlike ud2,
   which compilers write where a program must not come (onnxruntime has hundreds), it is in no other program. */

#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define BIT(number) (1u << (number))

/* glibc's own name of sigaction */
int __sigaction(int number, const struct sigaction *action, struct sigaction *old);

/* What is to be done at any other SIGILL, and whether that came. */
static struct sigaction other;
static volatile sig_atomic_t other_came;

static void older_cpuid(unsigned leaf, unsigned subleaf, unsigned *a, unsigned *b, unsigned *c, unsigned *d)
{
    __cpuid_count(leaf, subleaf, *a, *b, *c, *d);
    if (leaf == 7 && subleaf == 0) {
        /* AVX512 F, DQ, IFMA, PF, ER, CD, BW, VL */
        *b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31));
        /* AVX512 VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ */
        *c &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14));
        /* AVX512 4VNNIW, 4FMAPS, VP2INTERSECT; AMX BF16; AVX512 FP16; AMX TILE, INT8 */
        *d &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25));
    } else if (leaf == 7 && subleaf == 1) {
        /* AVX VNNI, AVX512 BF16, AMX FP16, AVX IFMA */
        *a &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(23));
        /* AVX VNNI INT8, AVX NE CONVERT, AVX VNNI INT16, AVX10 */
        *d &= ~(BIT(4) | BIT(5) | BIT(10) | BIT(19));
    }
}

static void on_sigill(int number, siginfo_t *info, void *context)
{
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    int sent = info->si_code <= 0;

    if (!sent && memcmp((const void *)registers[REG_RIP], "\x06\xa2", 2) == 0) {
        unsigned a, b, c, d;
        older_cpuid(registers[REG_RAX], registers[REG_RCX], &a, &b, &c, &d);
        registers[REG_RAX] = a;
        registers[REG_RBX] = b;
        registers[REG_RCX] = c;
        registers[REG_RDX] = d;
        registers[REG_RIP] += 2;
        return;
    }
    /* On return the instruction is run again and comes to the other handler. */
    other_came = 1;
    __sigaction(number, &other, NULL);
    if (sent)
        raise(number);
}

/* Without this faulthandler, which pytest switches on, would replace the handler. */
int sigaction(int number, const struct sigaction *action, struct sigaction *old)
{
    struct sigaction before = other;

    if (number != SIGILL || other_came)
        return __sigaction(number, action, old);
    if (action != NULL)
        other = *action;
    if (old != NULL)
        *old = before;
    return 0;
}

__attribute__((constructor)) static void install(void)
{
    struct sigaction action = {.sa_sigaction = on_sigill, .sa_flags = SA_SIGINFO | SA_NODEFER};

    if (__sigaction(SIGILL, &action, &other) != 0)
        abort();
}
