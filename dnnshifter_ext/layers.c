/* The loops of layers.py over the weights of one layer, for one type. What each answers is written there.
 *
 * O = output channels, I = input channels, G = groups, C = input channels of one group ("columns"), K = taps.
 */

#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef FLOAT64
typedef double number;
typedef uint64_t bits;
#else
typedef float number;
typedef uint32_t bits;
#endif

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the bytes of a word are expected with the lowest first"
#endif

enum { AHEAD = 8 };                                          /* kernels */
enum { UNREAD, BEING_READ, FOUND };

/* Of a function that is called with a constant number of taps: its loops over them are unrolled. */
#define INLINED __attribute__((always_inline))

typedef struct {
    int64_t outputs, columns, groups, taps;
    const number *weights;                                   /* (O, C, K) */
    const uint8_t *on_padding;                               /* (K) can the tap fall on zero padding? */
    uint64_t *reads;                                         /* (O, words) one bit per column: a non-zero weight? */
    _Atomic int64_t state;                                   /* of `reads` */
} layer;

static int64_t words(const layer *l) {
    return (l->columns + 63) / 64;
}

static const uint64_t *row(const layer *l, int64_t output) {
    return l->reads + output * words(l);
}

/* For each column that the output reads. */
#define FOR_EACH(column, layer, output)                                                                    \
    for (int64_t word_ = 0, column; word_ < words(layer); word_++)                                         \
        for (uint64_t left_ = row(layer, output)[word_];                                                   \
             left_ && (column = 64 * word_ + __builtin_ctzll(left_), 1); left_ &= left_ - 1)

static const number *kernel(const layer *l, int64_t output, int64_t column) {
    return l->weights + (output * l->columns + column) * l->taps;
}

/* The first input of the output's group. */
static int64_t first_input(const layer *l, int64_t output) {
    return l->columns * (output * l->groups / l->outputs);
}

/* ---- which kernels have a non-zero weight ------------------------------------------------------------------------ */

/* By the bits without the sign: a comparison may take the smallest numbers for zeros. */
static inline INLINED void find_with(const number *weights, int64_t kernels, int64_t taps, uint8_t *flags) {
    for (int64_t n = 0; n < kernels; n++, weights += taps) {
        bits all = 0, some;
        for (int64_t t = 0; t < taps; t++) {
            memcpy(&some, weights + t, sizeof some);
            all |= some;
        }
        flags[n] = all << 1 != 0;
    }
}

static uint64_t packed(const uint8_t flags[64]) {
    uint64_t word = 0, eight;
    for (int64_t i = 0; i < 8; i++) {
        memcpy(&eight, flags + 8 * i, sizeof eight);
        word |= eight * 0x0102040810204080 >> 56 << 8 * i;   /* moves the lowest bit of byte j to bit 56 + j */
    }
    return word;
}

static void read_all(layer *l) {
    for (int64_t o = 0; o < l->outputs; o++)
        for (int64_t w = 0; w < words(l); w++) {
            uint8_t flags[64] = {0};
            int64_t first = 64 * w, num = l->columns - first < 64 ? l->columns - first : 64;
            const number *weights = kernel(l, o, first);
            switch (l->taps) {
                case 1: find_with(weights, num, 1, flags); break;
                case 9: find_with(weights, num, 9, flags); break;
                default: find_with(weights, num, l->taps, flags);
            }
            l->reads[o * words(l) + w] = packed(flags);
        }
}

/* Fills `reads`, once: other threads that want it wait. */
void find(layer *l) {
    int64_t expected = UNREAD;
    if (atomic_compare_exchange_strong(&l->state, &expected, BEING_READ)) {
        read_all(l);
        atomic_store(&l->state, FOUND);
    }
    while (atomic_load(&l->state) != FOUND)
        sched_yield();
}

void find_all(layer *const *layers, int64_t num_layers) {
    for (int64_t i = 0; i < num_layers; i++)
        find(layers[i]);
}

/* ---- which channels are constant, and which are read -------------------------------------------------------------- */

static int meets_padding(const layer *l, const number *weights) {
    for (int64_t t = 0; t < l->taps; t++)
        if (l->on_padding[t] && weights[t] != 0)
            return 1;
    return 0;
}

/* What the output adds up to over inputs that are these constants. */
static double sum(const layer *l, int64_t output, const double *constants_I) {
    const double *constants = constants_I + first_input(l, output);
    double total = 0;
    FOR_EACH(c, l, output)
        if (constants[c] != 0) {
            const number *weights = kernel(l, output, c);
            double of_taps = 0;
            for (int64_t t = 0; t < l->taps; t++)
                of_taps += weights[t];
            total += of_taps * constants[c];
        }
    return total;
}

static int is_constant(const layer *l, int64_t output, const uint8_t *constant_I, const double *constants_I) {
    const uint8_t *constant = constant_I + first_input(l, output);
    const double *constants = constants_I + first_input(l, output);
    FOR_EACH(c, l, output)
        if (!constant[c] || (constants[c] != 0 && meets_padding(l, kernel(l, output, c))))
            return 0;
    return 1;
}

/* constants_O: the biases before, and afterwards the constants of the outputs that are constant. */
void constants(const layer *l, const uint8_t *constant_I, const double *constants_I, uint8_t *constant_O,
               double *constants_O) {
    for (int64_t o = 0; o < l->outputs; o++) {
        constant_O[o] = is_constant(l, o, constant_I, constants_I);
        if (constant_O[o])
            constants_O[o] += sum(l, o, constants_I);
    }
}

void sums(const layer *l, const uint8_t *outputs_O, const double *constants_I, double *sums_O) {
    for (int64_t o = 0; o < l->outputs; o++)
        sums_O[o] = outputs_O[o] ? sum(l, o, constants_I) : 0;
}

void reads(const layer *l, const uint8_t *outputs_O, uint8_t *reads_I) {
    int64_t per_group = l->outputs / l->groups;
    for (int64_t first = 0; first < l->outputs; first += per_group, reads_I += l->columns)
        for (int64_t w = 0; w < words(l); w++) {
            uint64_t any = 0;
            for (int64_t o = first; o < first + per_group; o++)
                any |= outputs_O[o] ? row(l, o)[w] : 0;
            for (int64_t c = 64 * w; c < 64 * w + 64 && c < l->columns; c++)
                reads_I[c] = any >> (c - 64 * w) & 1;
        }
}

/* cut_I: zeros before. */
void cut(const layer *l, const uint8_t *outputs_O, const double *constants_I, uint8_t *cut_I) {
    for (int64_t o = 0; o < l->outputs; o++)
        if (outputs_O[o]) {
            int64_t first = first_input(l, o);
            FOR_EACH(c, l, o)
                if (constants_I[first + c] != 0 && !cut_I[first + c])
                    cut_I[first + c] = meets_padding(l, kernel(l, o, c));
        }
}

/* ---- narrower layers ------------------------------------------------------------------------------------------------ */

typedef struct {
    layer *layer;
    int64_t num_outputs, num_columns;
    const int64_t *outputs, *columns;                        /* those that stay */
    const double *scale_O;                                   /* of all outputs; 0: no weights */
    const double *ratio_I;                                   /* how much of each input's kernel the carrier gets, or NULL */
    int64_t carrier;                                         /* where it is among the columns */
    number *narrow;                                          /* (num_outputs, num_columns, K) zeros before */
    _Atomic int64_t is_begun;
} filling;

static int all_below(const int64_t *indices, int64_t num, int64_t end) {
    for (int64_t i = 0; i < num; i++)
        if (indices[i] < 0 || indices[i] >= end)
            return 0;
    return 1;
}

/* position_C: where each column goes, or -1; found: space for C positions. */
static inline INLINED void fill_with(const filling *f, int64_t taps, const int64_t *position_C, int64_t *found) {
    const layer *l = f->layer;
    number *narrow = f->narrow;
    for (int64_t i = 0; i < f->num_outputs; i++, narrow += f->num_columns * taps) {
        const number *weights = kernel(l, f->outputs[i], 0);
        double scale = f->scale_O[f->outputs[i]];
        int64_t num_found = 0;
        if (scale == 0)
            continue;
        /* All kernels of the row before any of them: their memory arrives while others are copied. */
        FOR_EACH(c, l, f->outputs[i]) {
            found[num_found] = position_C[c];
            num_found += position_C[c] >= 0;
        }
        if (num_found == l->columns) {
            for (int64_t j = 0; j < num_found * taps; j++)
                narrow[j] = (number)(weights[j] * scale);
            continue;
        }
        for (int64_t n = 0; n < num_found; n++) {
            const number *from = weights + f->columns[found[n]] * taps;
            number *to = narrow + found[n] * taps;
            if (n + AHEAD < num_found)
                __builtin_prefetch(weights + f->columns[found[n + AHEAD]] * taps);
            for (int64_t t = 0; t < taps; t++)
                to[t] = (number)(from[t] * scale);
        }
    }
}

/* The kernels of the carrier: sums of those of all inputs times their ratios. merged: space for K. */
static void merge(const filling *f, double *merged) {
    const layer *l = f->layer;
    for (int64_t i = 0; i < f->num_outputs; i++) {
        double scale = f->scale_O[f->outputs[i]];
        number *narrow = f->narrow + (i * f->num_columns + f->carrier) * l->taps;
        memset(merged, 0, l->taps * sizeof *merged);
        if (scale != 0)
            FOR_EACH(c, l, f->outputs[i])
                if (f->ratio_I[c] != 0) {
                    const number *weights = kernel(l, f->outputs[i], c);
                    for (int64_t t = 0; t < l->taps; t++)
                        merged[t] += weights[t] * (f->ratio_I[c] * scale);
                }
        for (int64_t t = 0; t < l->taps; t++)
            narrow[t] = (number)merged[t];
    }
}

/* Can it be filled? Not if an index is none of the layer's, or there is no memory. */
static int fill(const filling *f) {
    layer *l = f->layer;
    if (!all_below(f->outputs, f->num_outputs, l->outputs) || !all_below(f->columns, f->num_columns, l->columns))
        return 0;
    int64_t *position_C = malloc((2 * l->columns + 1) * sizeof *position_C), *found = position_C + l->columns;
    double *merged = malloc(l->taps * sizeof *merged);
    int is_room = position_C && merged;
    if (is_room) {
        for (int64_t c = 0; c < l->columns; c++)
            position_C[c] = -1;
        for (int64_t j = 0; j < f->num_columns; j++)
            position_C[f->columns[j]] = j;
        find(l);
        switch (l->taps) {
            case 1: fill_with(f, 1, position_C, found); break;
            case 9: fill_with(f, 9, position_C, found); break;
            default: fill_with(f, l->taps, position_C, found);
        }
        if (f->ratio_I)
            merge(f, merged);
    }
    free(position_C);
    free(merged);
    return is_room;
}

/* Fills those that no other thread has begun, the last first; returns how many of them it could not. */
int64_t fill_all(filling *fillings, int64_t num_fillings) {
    int64_t failed = 0, expected;
    for (filling *f = fillings + num_fillings - 1; f >= fillings; f--)
        if (expected = 0, atomic_compare_exchange_strong(&f->is_begun, &expected, 1))
            failed += !fill(f);
    return failed;
}
