/* The loops of layers.py over the weights of one layer, for one type. What each answers is written there.
 *
 * O = output channels, I = input channels, G = groups, C = input channels of one group ("columns"), K = taps.
 */

#include <stdint.h>
#include <string.h>

#ifdef FLOAT64
typedef double number;
typedef uint64_t bits;
#else
typedef float number;
typedef uint32_t bits;
#endif

enum { AHEAD = 8 };                                          /* kernels */

/* Of a function that is called with a constant number of taps: its loops over them are unrolled. */
#define INLINED __attribute__((always_inline))

typedef struct {
    int64_t outputs, columns, groups, taps;
    const number *weights;                                    /* (O, C, K) */
    const uint8_t *on_padding;                               /* (K) can the tap fall on zero padding? */
    uint8_t *reads;                                          /* (O, C) has the kernel a non-zero weight? */
    uint8_t *reads_any;                                      /* (O) */
} layer;

static const number *kernel(const layer *l, int64_t output, int64_t column) {
    return l->weights + (output * l->columns + column) * l->taps;
}

/* The first input of the output's group. */
static int64_t first_input(const layer *l, int64_t output) {
    return l->columns * (output * l->groups / l->outputs);
}

/* ---- which kernels have a non-zero weight ------------------------------------------------------------------------ */

/* By the bits without the sign: a comparison may take the smallest numbers for zeros. */
static inline INLINED void find_with(const number *weights, int64_t kernels, int64_t taps, uint8_t *reads) {
    for (int64_t n = 0; n < kernels; n++, weights += taps) {
        bits all = 0, some;
        for (int64_t t = 0; t < taps; t++) {
            memcpy(&some, weights + t, sizeof some);
            all |= some;
        }
        reads[n] = all << 1 != 0;
    }
}

/* Fills `reads` and `reads_any`. */
void find(const layer *l) {
    for (int64_t o = 0; o < l->outputs; o++) {
        uint8_t *reads = l->reads + o * l->columns;
        uint8_t any = 0;
        switch (l->taps) {
            case 1: find_with(kernel(l, o, 0), l->columns, 1, reads); break;
            case 9: find_with(kernel(l, o, 0), l->columns, 9, reads); break;
            default: find_with(kernel(l, o, 0), l->columns, l->taps, reads);
        }
        for (int64_t c = 0; c < l->columns; c++)
            any |= reads[c];
        l->reads_any[o] = any;
    }
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
    const uint8_t *reads = l->reads + output * l->columns;
    const double *constants = constants_I + first_input(l, output);
    double total = 0;
    for (int64_t c = 0; c < l->columns; c++)
        if (reads[c] && constants[c] != 0) {
            const number *weights = kernel(l, output, c);
            double of_taps = 0;
            for (int64_t t = 0; t < l->taps; t++)
                of_taps += weights[t];
            total += of_taps * constants[c];
        }
    return total;
}

static int is_constant(const layer *l, int64_t output, const uint8_t *constant_I, const double *constants_I) {
    const uint8_t *reads = l->reads + output * l->columns, *constant = constant_I + first_input(l, output);
    const double *constants = constants_I + first_input(l, output);
    uint8_t varying = 0;
    for (int64_t c = 0; c < l->columns; c++)
        varying |= reads[c] & (constant[c] ^ 1);
    if (varying)
        return 0;
    for (int64_t c = 0; c < l->columns; c++)
        if (reads[c] && constants[c] != 0 && meets_padding(l, kernel(l, output, c)))
            return 0;
    return 1;
}

/* constants_O: the biases before, and afterwards the constants of the outputs that are constant. */
void constants(const layer *l, const uint8_t *constant_I, const double *constants_I, uint8_t *constant_O,
               double *constants_O) {
    for (int64_t o = 0; o < l->outputs; o++) {
        constant_O[o] = !l->reads_any[o] || is_constant(l, o, constant_I, constants_I);
        if (constant_O[o] && l->reads_any[o])
            constants_O[o] += sum(l, o, constants_I);
    }
}

void sums(const layer *l, const uint8_t *outputs_O, const double *constants_I, double *sums_O) {
    for (int64_t o = 0; o < l->outputs; o++)
        sums_O[o] = outputs_O[o] && l->reads_any[o] ? sum(l, o, constants_I) : 0;
}

/* reads_I: zeros before. */
void reads(const layer *l, const uint8_t *outputs_O, uint8_t *reads_I) {
    for (int64_t o = 0; o < l->outputs; o++)
        if (outputs_O[o] && l->reads_any[o]) {
            const uint8_t *row = l->reads + o * l->columns;
            uint8_t *own = reads_I + first_input(l, o);
            for (int64_t c = 0; c < l->columns; c++)
                own[c] |= row[c];
        }
}

/* cut_I: zeros before. */
void cut(const layer *l, const uint8_t *outputs_O, const uint8_t *shown_I, uint8_t *cut_I) {
    for (int64_t o = 0; o < l->outputs; o++)
        if (outputs_O[o] && l->reads_any[o]) {
            const uint8_t *row = l->reads + o * l->columns;
            int64_t first = first_input(l, o);
            for (int64_t c = 0; c < l->columns; c++)
                if (row[c] && shown_I[first + c] && !cut_I[first + c])
                    cut_I[first + c] = meets_padding(l, kernel(l, o, c));
        }
}

/* ---- a narrower layer ---------------------------------------------------------------------------------------------- */

static inline INLINED void fill_with(const layer *l, int64_t taps, const int64_t *outputs, int64_t num_outputs,
                                     const int64_t *columns, int64_t num_columns, const double *scale_O,
                                     int64_t *found, number *narrow) {
    for (int64_t i = 0; i < num_outputs; i++, narrow += num_columns * taps) {
        int64_t num_found = 0;
        const uint8_t *reads = l->reads + outputs[i] * l->columns;
        const number *weights = kernel(l, outputs[i], 0);
        double scale = scale_O[outputs[i]];
        if (!l->reads_any[outputs[i]] || scale == 0)
            continue;
        /* All kernels of the row before any of them: their memory arrives while others are copied. */
        for (int64_t j = 0; j < num_columns; j++) {
            found[num_found] = j;
            num_found += reads[columns[j]];
        }
        if (num_found == l->columns) {
            for (int64_t j = 0; j < num_columns * taps; j++)
                narrow[j] = (number)(weights[j] * scale);
            continue;
        }
        for (int64_t n = 0; n < num_found; n++) {
            const number *from = weights + columns[found[n]] * taps;
            number *to = narrow + found[n] * taps;
            if (n + AHEAD < num_found)
                __builtin_prefetch(weights + columns[found[n + AHEAD]] * taps);
            for (int64_t t = 0; t < taps; t++)
                to[t] = (number)(from[t] * scale);
        }
    }
}

static int all_below(const int64_t *indices, int64_t num, int64_t end) {
    for (int64_t i = 0; i < num; i++)
        if (indices[i] < 0 || indices[i] >= end)
            return 0;
    return 1;
}

/* narrow: (num_outputs, num_columns, K), zeros before; found: space for num_columns. Is every index one of the layer? */
int fill(const layer *l, const int64_t *outputs, int64_t num_outputs, const int64_t *columns, int64_t num_columns,
         const double *scale_O, int64_t *found, number *narrow) {
    if (!all_below(outputs, num_outputs, l->outputs) || !all_below(columns, num_columns, l->columns))
        return 0;
    switch (l->taps) {
        case 1: fill_with(l, 1, outputs, num_outputs, columns, num_columns, scale_O, found, narrow); break;
        case 9: fill_with(l, 9, outputs, num_outputs, columns, num_columns, scale_O, found, narrow); break;
        default: fill_with(l, l->taps, outputs, num_outputs, columns, num_columns, scale_O, found, narrow);
    }
    return 1;
}

/* One kernel per output, (num_outputs, K): the sum of those of all inputs times their ratios. */
void merge(const layer *l, const int64_t *outputs, int64_t num_outputs, const double *ratio_I, const double *scale_O,
           double *merged) {
    memset(merged, 0, num_outputs * l->taps * sizeof *merged);
    for (int64_t i = 0; i < num_outputs; i++, merged += l->taps) {
        const uint8_t *reads = l->reads + outputs[i] * l->columns;
        double scale = scale_O[outputs[i]];
        for (int64_t c = 0; c < l->columns && scale != 0; c++)
            if (reads[c] && ratio_I[c] != 0) {
                const number *weights = kernel(l, outputs[i], c);
                for (int64_t t = 0; t < l->taps; t++)
                    merged[t] += weights[t] * (ratio_I[c] * scale);
            }
    }
}
