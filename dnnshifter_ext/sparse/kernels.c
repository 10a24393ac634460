/* Direct convolution with sparse weights: float32, any stride, padding, dilation and groups; bias, clamp and max pool.
 *
 * The idea is that of Park et al., "Faster CNNs with Direct Sparse Convolutions and Guided Pruning", ICLR 2017: each
 * weight that is left adds itself times a shifted piece of the input to a piece of the output that stays in registers.
 *
 * One task computes one tile of the output, for some of its channels. First it packs what the tile reads into a buffer
 * that fits the second-level cache, with zeros around the borders, and with the rows and columns that a strided
 * convolution skips apart ("phases"), so that the inner loop sees neither: there, outputs that lie side by side read
 * inputs that lie side by side, at a distance that the weight's position decides, `offsets[position]`.
 *
 * "Side by side" means one of two things. With many images, a vector holds one pixel of LANES images (layout: channel,
 * row, column, image). With few, it holds pixels of one image (layout: image, channel, row, column), and a tile is a band
 * of rows, read flat: its last columns reach across the end of a row, are computed in vain, and are not stored.
 */

#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
enum { LANES = 16, TILE_SIDE = 4, BAND_VECTORS = 16 };       /* 32 registers: 16 accumulators and some to spare */
#elif defined(__AVX__)
enum { LANES = 8, TILE_SIDE = 3, BAND_VECTORS = 8 };         /* 16 registers */
#else
enum { LANES = 4, TILE_SIDE = 3, BAND_VECTORS = 8 };
#endif

enum { MAX_VECTORS = 16, TASKS_PER_THREAD = 4, BAND_FLOATS = 1 << 17 };

typedef float vector __attribute__((vector_size(LANES * sizeof(float))));
typedef vector unaligned __attribute__((aligned(sizeof(float)), may_alias));

/* Filled in by Python down to `high`, by `plan` from there on; then the same in every call, on any thread. */
typedef struct {
    int64_t batch, in_channels, height, width;
    int64_t out_channels, out_height, out_width;
    int64_t groups, kernel_height, kernel_width, stride_height, stride_width, pad_top, pad_left;
    int64_t dilation_height, dilation_width;
    int64_t pool;                                            /* 1, or 2: each 2x2 outputs become their maximum */
    int64_t across_images;                                   /* which layout */
    const int32_t *pointers;                                 /* [out-channel] its first weight, and the end */
    const uint16_t *positions;                               /* (channel of the group, kernel row, kernel column), flat */
    const float *values;
    const float *bias;                                       /* [out-channel] */
    float low, high;                                         /* what the outputs are clamped to */

    int64_t tile_rows, tile_columns, out_channels_per_task, floats_per_worker;
    /* The packed tile: (channel, phase, row, column, lane); distances in floats. */
    int64_t phase_rows, phase_columns, packed_rows, packed_columns, element, row, plane, channel;
} convolution;

typedef struct {
    const convolution *c;
    const float *input;
    float *output, *scratch;
    _Atomic int64_t next_task, next_worker, found_nan;
} job;

typedef struct { int64_t image, row, column; } origin;       /* the first output of a tile */

static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t num_positions(const convolution *c) {
    return c->in_channels / c->groups * c->kernel_height * c->kernel_width;
}
static int64_t num_tiles(const convolution *c) {
    return ceil_div(c->batch, c->across_images ? LANES : 1) * ceil_div(c->out_height, c->tile_rows) *
        ceil_div(c->out_width, c->tile_columns);
}

/* ---- packing ----------------------------------------------------------------------------------------------------- */

/* Elements [begin, end) of a packed row come from the input's columns `first`, `first` + stride, ...; zeros elsewhere. */
typedef struct { int64_t first, begin, end; } span;

static span columns_of(const convolution *c, int64_t first) {
    int64_t step = c->stride_width, n = c->packed_columns;
    int64_t begin = first >= 0 ? 0 : min(n, ceil_div(-first, step));
    return (span){first, begin, first >= c->width ? begin : max(begin, min(n, ceil_div(c->width - first, step)))};
}

/* `check` becomes NaN if anything read is NaN or infinite: it gathers 0 * x. */
static inline void pack_row(const convolution *c, span s, const float *in, int64_t images, float *restrict to,
                            vector *check) {
    int64_t step = c->stride_width, lanes = c->element, x = s.begin;
    for (int64_t i = 0; i < s.begin * lanes; i++) to[i] = 0;
    for (int64_t i = s.end * lanes; i < c->row; i++) to[i] = 0;
    if (c->across_images) {
        in += s.first * c->batch;
        for (; x < s.end; x++) {
            const float *from = in + x * step * c->batch;
            float *own = to + x * LANES;
            if (images == LANES)
                *(unaligned *)own = *(const unaligned *)from;
            else
                for (int64_t i = 0; i < LANES; i++) own[i] = i < images ? from[i] : 0;
            *check += *(unaligned *)own * 0;
        }
        return;
    }
    in += s.first;
    for (; step == 1 && x + LANES <= s.end; x += LANES) {
        vector piece = *(const unaligned *)(in + x);
        *(unaligned *)(to + x) = piece;
        *check += piece * 0;
    }
    for (; x < s.end; x++) {
        to[x] = in[x * step];
        (*check)[0] += to[x] * 0;
    }
}

/* What a tile reads. Returns whether any of it is NaN or infinite. */
static int pack(const convolution *c, const float *input, const origin *at, float *to) {
    int64_t images = c->across_images ? min(LANES, c->batch - at->image) : 1;
    int64_t lanes = c->across_images ? c->batch : 1, plane = c->height * c->width * lanes;
    const float *image = input + (c->across_images ? at->image : at->image * c->in_channels * plane);
    vector check = {0};
    for (int64_t channel = 0; channel < c->in_channels; channel++, image += plane)
        for (int64_t down = 0; down < c->phase_rows; down++)
            for (int64_t right = 0; right < c->phase_columns; right++) {
                span s = columns_of(c, at->column * c->stride_width + right - c->pad_left);
                int64_t y = at->row * c->stride_height + down - c->pad_top;
                for (int64_t row = 0; row < c->packed_rows; row++, y += c->stride_height, to += c->row)
                    if (y < 0 || y >= c->height)
                        memset(to, 0, (size_t)c->row * sizeof(float));
                    else
                        pack_row(c, s, image + y * c->width * lanes, images, to, &check);
            }
    memset(to, 0, MAX_VECTORS * LANES * sizeof(float));      /* a band's last vectors read on */
    int found = 0;
    for (int i = 0; i < LANES; i++) found |= check[i] != check[i];
    return found;
}

/* ---- the inner loop ---------------------------------------------------------------------------------------------- */

typedef struct {
    const float *input;                                      /* what the tile's first output reads at position 0 */
    int64_t row;                                             /* from one row of outputs to the next */
    const int32_t *offsets;
    const uint16_t *positions;
    const float *values;
    int64_t num;
} filter;

#define UNROLL _Pragma("GCC unroll 16")

/* One pointer a row. Left alone, compilers compute one a vector, and run out of registers. */
static inline const float *next_row(const float *x, int64_t row) {
    x += row;
    __asm__("" : "+r"(x));
    return x;
}

/* ROWS x VECTORS sums that begin as `bias`. Too few of them would wait for each other: hence PARTS weights at a time. */
#define KERNEL(ROWS, VECTORS, PARTS)                                                                                   \
    static void kernel_##ROWS##x##VECTORS(filter f, float bias, float *restrict sums) {                                \
        vector a[PARTS][ROWS][VECTORS];                                                                                \
        UNROLL for (int part = 0; part < PARTS; part++)                                                                \
            UNROLL for (int r = 0; r < ROWS; r++)                                                                      \
                UNROLL for (int v = 0; v < VECTORS; v++) a[part][r][v] = (part ? 0 : bias) - (vector){0};              \
        int64_t k = 0;                                                                                                 \
        for (; k + PARTS <= f.num; k += PARTS)                                                                         \
            UNROLL for (int part = 0; part < PARTS; part++) {                                                          \
                const float *x = f.input + f.offsets[f.positions[k + part]];                                           \
                vector value = f.values[k + part] - (vector){0};                                                       \
                UNROLL for (int r = 0; r < ROWS; r++, x = next_row(x, f.row))                                          \
                    UNROLL for (int v = 0; v < VECTORS; v++)                                                           \
                        a[part][r][v] += value * *(const unaligned *)(x + v * LANES);                                  \
            }                                                                                                          \
        for (; PARTS > 1 && k < f.num; k++) {                                                                          \
            const float *x = f.input + f.offsets[f.positions[k]];                                                      \
            vector value = f.values[k] - (vector){0};                                                                  \
            UNROLL for (int r = 0; r < ROWS; r++, x = next_row(x, f.row))                                              \
                UNROLL for (int v = 0; v < VECTORS; v++) a[0][r][v] += value * *(const unaligned *)(x + v * LANES);    \
        }                                                                                                              \
        UNROLL for (int r = 0; r < ROWS; r++)                                                                          \
            UNROLL for (int v = 0; v < VECTORS; v++) {                                                                 \
                UNROLL for (int part = 1; part < PARTS; part++) a[0][r][v] += a[part][r][v];                           \
                *(unaligned *)(sums + (r * VECTORS + v) * LANES) = a[0][r][v];                                         \
            }                                                                                                          \
    }

KERNEL(1, 1, 4) KERNEL(1, 2, 4) KERNEL(1, 3, 2) KERNEL(1, 4, 2) KERNEL(1, 6, 1) KERNEL(1, 8, 1)
KERNEL(2, 1, 4) KERNEL(2, 2, 2) KERNEL(3, 1, 2) KERNEL(3, 3, 1)
#if defined(__AVX512F__)
KERNEL(1, 12, 1) KERNEL(1, 16, 1) KERNEL(2, 4, 1) KERNEL(4, 1, 2) KERNEL(4, 2, 1) KERNEL(4, 4, 1)
#else
KERNEL(2, 3, 1) KERNEL(3, 2, 1)
#endif

typedef struct {
    int64_t rows, vectors;
    void (*run)(filter, float, float *);
} kernel;

static const kernel KERNELS[] = {                            /* for each number of rows the widest first */
#if defined(__AVX512F__)
    {1, 16, kernel_1x16}, {1, 12, kernel_1x12}, {2, 4, kernel_2x4},
    {4, 4, kernel_4x4}, {4, 2, kernel_4x2}, {4, 1, kernel_4x1},
#else
    {2, 3, kernel_2x3}, {3, 2, kernel_3x2},
#endif
    {1, 8, kernel_1x8}, {1, 6, kernel_1x6}, {1, 4, kernel_1x4},
    {1, 3, kernel_1x3}, {1, 2, kernel_1x2}, {1, 1, kernel_1x1},
    {2, 2, kernel_2x2}, {2, 1, kernel_2x1}, {3, 3, kernel_3x3}, {3, 1, kernel_3x1},
};

/* The widest for at most so many vectors a row, or NULL. */
static const kernel *find_kernel(int64_t rows, int64_t vectors) {
    const kernel *found = NULL;
    for (size_t i = 0; i < sizeof KERNELS / sizeof *KERNELS; i++)
        if (KERNELS[i].rows == rows && KERNELS[i].vectors <= vectors && (!found || KERNELS[i].vectors > found->vectors))
            found = &KERNELS[i];
    return found;
}

/* ---- one task ---------------------------------------------------------------------------------------------------- */

static inline float larger(float a, float b) { return a > b ? a : b; }

static inline float clamp(const convolution *c, float y) {          /* NaN stays NaN */
    y = y < c->low ? c->low : y;
    return y > c->high ? c->high : y;
}

/* One pixel of some images; the compiler sees how many when they fill a vector. */
static inline void store_images(const convolution *c, const float *restrict from, int64_t right, int64_t below,
                                int64_t images, float *restrict to) {
    for (int64_t i = 0; i < images; i++) {
        float y = from[i];
        if (right) y = larger(larger(y, from[i + right]), larger(from[i + below], from[i + below + right]));
        to[i] = clamp(c, y);
    }
}

/* One channel of a tile: `sums` of its rows, columns and images, clamped and pooled, into the output. */
static void store(const convolution *c, const origin *at, int64_t channel, const float *restrict sums, float *output) {
    int64_t pool = c->pool, height = c->out_height / pool, width = c->out_width / pool;
    int64_t rows = min(c->tile_rows / pool, height - at->row / pool);
    int64_t columns = min(c->tile_columns / pool, width - at->column / pool);
    int64_t pixel = at->row / pool * width + at->column / pool;
    if (c->across_images) {
        int64_t images = min(LANES, c->batch - at->image), row_floats = c->tile_columns * LANES;
        float *out = output + (channel * height * width + pixel) * c->batch + at->image;
        for (int64_t row = 0; row < rows; row++)
            for (int64_t column = 0; column < columns; column++) {
                const float *from = sums + row * pool * row_floats + column * pool * LANES;
                float *to = out + (row * width + column) * c->batch;
                if (images < LANES)
                    store_images(c, from, pool == 2 ? LANES : 0, row_floats, images, to);
                else if (pool == 2)
                    store_images(c, from, LANES, row_floats, LANES, to);
                else
                    store_images(c, from, 0, 0, LANES, to);
            }
        return;
    }
    float *out = output + (at->image * c->out_channels + channel) * height * width + pixel;
    for (int64_t row = 0; row < rows; row++, out += width) {
        const float *from = sums + row * pool * c->row, *below = from + c->row;
        if (pool == 2)
            for (int64_t x = 0; x < columns; x++)
                out[x] = clamp(c, larger(larger(from[2 * x], from[2 * x + 1]), larger(below[2 * x], below[2 * x + 1])));
        else
            for (int64_t x = 0; x < columns; x++) out[x] = clamp(c, from[x]);
    }
}

static void convolve_tile(const convolution *c, const origin *at, int64_t first, int64_t last, const float *tile,
                          const int32_t *offsets, float *sums, float *output) {
    int64_t rows = c->across_images ? c->tile_rows : 1;
    int64_t vectors = c->across_images ? c->tile_columns
        : ceil_div((min(c->tile_rows, c->out_height - at->row) - 1) * c->row + c->out_width, LANES);
    for (int64_t o = first; o < last; o++) {
        int64_t group = o / (c->out_channels / c->groups), begin = c->pointers[o];
        filter f = {tile + group * (c->in_channels / c->groups) * c->channel, c->row, offsets, c->positions + begin,
                    c->values + begin, c->pointers[o + 1] - begin};
        for (int64_t done = 0; done < vectors;) {            /* once for a tile, several times for a band */
            const kernel *k = find_kernel(rows, vectors - done);
            k->run(f, c->bias[o], sums + done * LANES);
            f.input += k->vectors * LANES;
            done += k->vectors;
        }
        store(c, at, o, sums, output);
    }
}

static void fill_offsets(const convolution *c, int32_t *offsets) {
    for (int64_t i = 0; i < c->in_channels / c->groups; i++)
        for (int64_t y = 0; y < c->kernel_height * c->dilation_height; y += c->dilation_height)
            for (int64_t x = 0; x < c->kernel_width * c->dilation_width; x += c->dilation_width) {
                int64_t phase = y % c->stride_height * c->phase_columns + x % c->stride_width;
                *offsets++ = (int32_t)(i * c->channel + phase * c->plane + y / c->stride_height * c->row +
                                       x / c->stride_width * c->element);
            }
}

static int64_t aligned(int64_t floats) { return ceil_div(floats, LANES) * LANES; }

static int64_t num_sums(const convolution *c) {              /* one channel of a tile */
    return c->across_images ? MAX_VECTORS * LANES : aligned(c->tile_rows * c->row) + MAX_VECTORS * LANES;
}

/* One worker: takes tasks until there are none. */
static void work(void *argument) {
    job *j = argument;
    const convolution *c = j->c;
    int32_t *offsets = (int32_t *)(j->scratch + atomic_fetch_add(&j->next_worker, 1) * c->floats_per_worker);
    float *sums = (float *)offsets + aligned(num_positions(c)), *tile = sums + num_sums(c);
    fill_offsets(c, offsets);
    int64_t across = ceil_div(c->out_width, c->tile_columns), down = ceil_div(c->out_height, c->tile_rows);
    int64_t parts = ceil_div(c->out_channels, c->out_channels_per_task), num_tasks = num_tiles(c) * parts, packed = -1;
    for (int64_t task; (task = atomic_fetch_add(&j->next_task, 1)) < num_tasks;) {
        int64_t number = task / parts, first = task % parts * c->out_channels_per_task;
        origin at = {number / across / down * (c->across_images ? LANES : 1), number / across % down * c->tile_rows,
                     number % across * c->tile_columns};
        if (packed != number && pack(c, j->input, &at, tile)) j->found_nan = 1;
        packed = number;
        convolve_tile(c, &at, first, min(first + c->out_channels_per_task, c->out_channels), tile, offsets, sums,
                      j->output);
    }
}

/* ---- what Python calls ------------------------------------------------------------------------------------------- */

int64_t lanes(void) { return LANES; }

int64_t size_of_convolution(void) { return sizeof(convolution); }

static int64_t side(const convolution *c, int64_t outputs) {
    int64_t most = TILE_SIDE / c->pool * c->pool;            /* no pool reaches across tiles */
    return outputs >= most || (most == 4 && outputs == 3) ? most : outputs;
}

/* Chooses the tiles, for so many threads. Returns the bytes of scratch memory, aligned to 64, that `convolve` needs. */
int64_t plan(convolution *c, int64_t threads) {
    int64_t reach_down = (c->kernel_height - 1) * c->dilation_height;
    int64_t reach_right = (c->kernel_width - 1) * c->dilation_width;
    c->phase_rows = min(c->stride_height, reach_down + 1);
    c->phase_columns = min(c->stride_width, reach_right + 1);
    c->element = c->across_images ? LANES : 1;
    c->tile_columns = c->across_images ? side(c, c->out_width) : c->out_width;
    c->packed_columns = c->tile_columns + reach_right / c->stride_width;
    c->row = c->packed_columns * c->element;
    int64_t floats_per_row = c->in_channels * c->phase_rows * c->phase_columns * c->row;
    c->tile_rows = c->across_images ? side(c, c->out_height)
        : max(c->pool, min(c->out_height, BAND_FLOATS / floats_per_row) / c->pool * c->pool);
    c->packed_rows = c->tile_rows + reach_down / c->stride_height;
    c->plane = c->packed_rows * c->row;
    c->channel = c->phase_rows * c->phase_columns * c->plane;
    int64_t parts = threads == 1 ? 1 : max(1, TASKS_PER_THREAD * threads / num_tiles(c));
    c->out_channels_per_task = max(1, ceil_div(c->out_channels, parts));
    c->floats_per_worker = aligned(num_positions(c)) + num_sums(c) +
        aligned(c->channel * c->in_channels + MAX_VECTORS * LANES);
    return threads * c->floats_per_worker * (int64_t)sizeof(float);
}

/* `threads` and `scratch` as planned. `parallel` is GOMP_parallel of the OpenMP runtime that the process has already,
 * whose threads would be in the way of others, or NULL. Returns whether the input has a value that is NaN or infinite. */
int64_t convolve(const convolution *c, const float *input, float *output, float *scratch, int64_t threads,
                 void (*parallel)(void (*)(void *), void *, unsigned, unsigned)) {
    job j = {c, input, output, scratch, 0, 0, 0};
    if (threads > 1 && parallel)
        parallel(work, &j, (unsigned)threads, 0);
    else
        work(&j);
    return j.found_nan;
}
