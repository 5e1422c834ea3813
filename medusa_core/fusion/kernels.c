/* What a small model spends its time on, for few rows of float32 on one thread.
 *
 * The weights of a small model stand in memory, not in the processor's caches, when a step needs them: every kernel
 * reads each weight once, in order, and asks for it ahead of time. Each output is the same sequence of operations
 * however many rows there are, so a row of a tree is bitwise what it would be alone.
 */
#include <math.h>
#include <string.h>

#define LANES 8
#define AHEAD 1024       /* floats: two pages, which the processor does not prefetch across by itself */
#define BLOCK_BYTES 32768 /* of weights that stay close while all rows pass over them */
#define UNROLL _Pragma("GCC unroll 8")

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef float anywhere __attribute__((vector_size(4 * LANES), aligned(4)));

static inline lanes load(const float *from) { return *(const anywhere *)from; }
static inline void store(float *to, lanes value) { *(anywhere *)to = value; }

#define PAIR(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#define ADD_1(a, b) (PAIR(a, b, 0, 8, 2, 10, 4, 12, 6, 14) + PAIR(a, b, 1, 9, 3, 11, 5, 13, 7, 15))
#define ADD_2(a, b) (PAIR(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + PAIR(a, b, 2, 3, 10, 11, 6, 7, 14, 15))
#define ADD_4(a, b) (PAIR(a, b, 0, 1, 2, 3, 8, 9, 10, 11) + PAIR(a, b, 4, 5, 6, 7, 12, 13, 14, 15))

/* Lane i of the result is the sum of the lanes of a[i]. */
static inline lanes sums(const lanes *a) {
    lanes low = ADD_2(ADD_1(a[0], a[1]), ADD_1(a[2], a[3])), high = ADD_2(ADD_1(a[4], a[5]), ADD_1(a[6], a[7]));
    return ADD_4(low, high);
}

/* OUTS outputs of ROWS rows, eight sums in all. */
#define TILE(OUTS, ROWS)                                                                                               \
    static inline void tile_##OUTS##_##ROWS(const float *rows, const float *weight, const float *added, long stride,   \
                                            float *result, long in, long out) {                                        \
        lanes sum[8];                                                                                                  \
        memset(sum, 0, sizeof sum);                                                                                    \
        for (long k = 0; k < in; k += LANES) {                                                                         \
            lanes part[OUTS];                                                                                          \
            UNROLL for (int o = 0; o < OUTS; o++) {                                                                    \
                part[o] = load(weight + o * in + k);                                                                   \
                if (k % (2 * LANES) == 0) __builtin_prefetch(weight + o * in + k + AHEAD);                             \
            }                                                                                                          \
            UNROLL for (int n = 0; n < ROWS; n++) {                                                                    \
                lanes row = load(rows + n * in + k);                                                                   \
                UNROLL for (int o = 0; o < OUTS; o++) sum[o * ROWS + n] += part[o] * row;                              \
            }                                                                                                          \
        }                                                                                                              \
        lanes total = sums(sum);                                                                                       \
        UNROLL for (int n = 0; n < ROWS; n++) UNROLL for (int o = 0; o < OUTS; o++)                                    \
            result[n * out + o] = added ? added[n * stride + o] + total[o * ROWS + n] : total[o * ROWS + n];           \
    }
TILE(1, 8)
TILE(2, 4)
TILE(4, 2)
TILE(8, 1)

/* Outputs first .. last - 1 of as many rows as make whole tiles; the last tile is moved back where it would hang over. */
#define PASS(OUTS, ROWS)                                                                                               \
    for (; row + ROWS <= num_rows; row += ROWS)                                                                        \
        for (long o = first; o < last; o += OUTS) {                                                                    \
            long place = o + OUTS <= out ? o : out - OUTS;                                                             \
            tile_##OUTS##_##ROWS(rows + row * in, weight + place * in, added ? added + row * stride + place : 0,       \
                                 stride, result + row * out + place, in, out);                                         \
        }

/* result [rows, out] = rows [rows, in] times weight [out, in], plus what is added at that stride between rows, or
 * nothing; `in` a multiple of 8, `out` at least 8. */
void product(const float *rows, const float *weight, const float *added, float *result, long num_rows, long in,
             long out, long stride) {
    long block = BLOCK_BYTES / 4 / in / 8 * 8;
    block = block < 8 ? 8 : block;
    for (long first = 0; first < out; first += block) {
        long last = first + block < out ? first + block : out, row = 0;
        PASS(1, 8)
        PASS(2, 4)
        PASS(4, 2)
        PASS(8, 1)
    }
}

/* result [rows, width] = rows scaled to unit mean square, times weight [width]; `width` a multiple of 8. */
void rms_norm(const float *rows, const float *weight, float *result, long num_rows, long width, float eps) {
    for (long n = 0; n < num_rows; n++, rows += width, result += width) {
        lanes squares = {0};
        for (long k = 0; k < width; k += LANES) squares += load(rows + k) * load(rows + k);
        float total = 0;
        for (int i = 0; i < LANES; i++) total += squares[i];
        float scale = 1.0f / sqrtf(total / width + eps);
        for (long k = 0; k < width; k += LANES) store(result + k, load(rows + k) * scale * load(weight + k));
    }
}

/* Turns the first `turned` of `all` heads [rows, all, dim] in place by the factors of each row [rows, 2, part], which
 * are for the first `part` numbers of a head: cosines, and sines that are negative in their first half. */
void turn(float *heads, const float *restrict factors, long num_rows, long turned, long all, long dim, long part) {
    long half = part / 2;
    for (long n = 0; n < num_rows; n++, heads += all * dim, factors += 2 * part)
        for (long h = 0; h < turned; h++) {
            float *restrict low = heads + h * dim, *restrict high = low + half;
            for (long k = 0; k < half; k++) {
                float first = low[k], second = high[k];
                low[k] = first * factors[k] + second * factors[part + k];
                high[k] = second * factors[half + k] + first * factors[part + half + k];
            }
        }
}
