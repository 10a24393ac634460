/* What one core can do at most: multiply-adds of registers, and of one operand read from buffers of several sizes. */

#include <stdlib.h>
#include <time.h>

#if defined(__AVX512F__)
enum { LANES = 16 };
#elif defined(__AVX__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
enum { SUMS = 12 };

typedef float vector __attribute__((vector_size(LANES * sizeof(float))));

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* GFLOP/s over a buffer of so many bytes; 0: registers alone. */
double gflops(long bytes) {
    long n = bytes / (long)sizeof(vector) / SUMS * SUMS, repeats = n ? n / SUMS : 64;
    long rounds = 400000000L / LANES / SUMS / repeats + 1;
    vector *x = aligned_alloc(64, (size_t)(n ? n : SUMS) * sizeof(vector)), sums[SUMS] = {0}, constant = {1.5f};
    for (long i = 0; i < n; i++) x[i] = constant;
    double best_s = 1e9;
    for (int trial = 0; trial < 5; trial++) {
        double begin_s = now_s();
        for (long round = 0; round < rounds; round++) {
            float w = 1e-3f;
            __asm__ volatile("" : "+m"(w));
            vector weight = w - (vector){0};
            if (n)
                for (long i = 0; i < n; i += SUMS)
                    _Pragma("GCC unroll 12") for (int s = 0; s < SUMS; s++) sums[s] += weight * x[i + s];
            else
                for (long i = 0; i < repeats; i++)
                    _Pragma("GCC unroll 12") for (int s = 0; s < SUMS; s++) sums[s] += weight * constant;
        }
        double spent_s = now_s() - begin_s;
        best_s = spent_s < best_s ? spent_s : best_s;
    }
    volatile float sink = 0;
    for (int s = 0; s < SUMS; s++) sink += sums[s][0];
    free(x);
    return 2.0 * (double)rounds * (double)repeats * SUMS * LANES / best_s * 1e-9;
}
