/* What a small model spends its time on, for few rows of float32 on one thread.
 *
 * The weights of a small model stand in memory, not in the processor's caches, when a step needs them: every kernel
 * reads each weight once, in order, and asks for it ahead of time. Each output is the same sequence of operations
 * however many rows there are, so a row of a tree is bitwise what it would be alone.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 8
#define LINE 64     /* bytes that come from memory at once */
#define AHEAD 4096  /* bytes: the page behind, which the processor does not look into by itself */
#define BLOCK 32768 /* bytes of weights that stay close while all rows pass over them */
#define UNROLL _Pragma("GCC unroll 8")

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t switches __attribute__((vector_size(4 * LANES)));
typedef float anywhere __attribute__((vector_size(4 * LANES), aligned(4)));

/* The upper half of a float32. A weight that was stored as such gives the same products, and takes half the reading. */
typedef uint16_t bfloat16;
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));

static inline lanes load_float(const float *from) { return *(const anywhere *)from; }
static inline lanes load_bfloat16(const bfloat16 *from) {
    return (lanes)(__builtin_convertvector(*(const halves *)from, words) << 16);
}
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
#define TILE(NAME, WEIGHT, OUTS, ROWS)                                                                                 \
    static inline void NAME##_##OUTS##_##ROWS(const float *rows, const WEIGHT *weight, const float *added,             \
                                              long stride, float *result, long in, long out) {                         \
        lanes sum[8];                                                                                                  \
        memset(sum, 0, sizeof sum);                                                                                    \
        for (long k = 0; k < in; k += LANES) {                                                                         \
            lanes part[OUTS];                                                                                          \
            UNROLL for (int o = 0; o < OUTS; o++) {                                                                    \
                part[o] = load_##WEIGHT(weight + o * in + k);                                                          \
                if (k * sizeof(WEIGHT) % LINE == 0) __builtin_prefetch(weight + o * in + k + AHEAD / sizeof(WEIGHT));  \
            }                                                                                                          \
            UNROLL for (int n = 0; n < ROWS; n++) {                                                                    \
                lanes row = load_float(rows + n * in + k);                                                             \
                UNROLL for (int o = 0; o < OUTS; o++) sum[o * ROWS + n] += part[o] * row;                              \
            }                                                                                                          \
        }                                                                                                              \
        lanes total = sums(sum);                                                                                       \
        UNROLL for (int n = 0; n < ROWS; n++) UNROLL for (int o = 0; o < OUTS; o++)                                    \
            result[n * out + o] = added ? added[n * stride + o] + total[o * ROWS + n] : total[o * ROWS + n];           \
    }

/* Outputs first .. last - 1 of as many rows as make whole tiles; a last tile that would hang over is moved back. */
#define PASS(NAME, OUTS, ROWS)                                                                                         \
    for (; row + ROWS <= num_rows; row += ROWS)                                                                        \
        for (long o = first; o < last; o += OUTS) {                                                                    \
            long place = o + OUTS <= out ? o : out - OUTS;                                                             \
            NAME##_##OUTS##_##ROWS(rows + row * in, weight + place * in, added ? added + row * stride + place : 0,     \
                                   stride, result + row * out + place, in, out);                                       \
        }

/* result [rows, out] = rows [rows, in] times weight [out, in], plus what is added at that stride between rows, or
 * nothing; `in` a multiple of 8, `out` at least 8. */
#define PRODUCT(NAME, WEIGHT)                                                                                          \
    TILE(NAME, WEIGHT, 1, 8)                                                                                           \
    TILE(NAME, WEIGHT, 2, 4)                                                                                           \
    TILE(NAME, WEIGHT, 4, 2)                                                                                           \
    TILE(NAME, WEIGHT, 8, 1)                                                                                           \
    void NAME(const float *rows, const WEIGHT *weight, const float *added, float *result, long num_rows, long in,      \
              long out, long stride) {                                                                                 \
        long block = BLOCK / (long)sizeof(WEIGHT) / in / 8 * 8;                                                        \
        block = block < 8 ? 8 : block;                                                                                 \
        for (long first = 0; first < out; first += block) {                                                            \
            long last = first + block < out ? first + block : out, row = 0;                                            \
            PASS(NAME, 1, 8)                                                                                           \
            PASS(NAME, 2, 4)                                                                                           \
            PASS(NAME, 4, 2)                                                                                           \
            PASS(NAME, 8, 1)                                                                                           \
        }                                                                                                              \
    }
PRODUCT(product, float)
PRODUCT(product_bfloat16, bfloat16)

/* result [out] = row [in] times weight [out, in] with a scale for each output. The row is rounded to 12 bits, kept in
 * steps [in], so that sums of up to 8192 products fit into 32 bits. */
void product_int8(const float *row, const int8_t *weight, const float *scales, int16_t *steps, float *result, long in,
                  long out) {
    float largest = 1e-30f;
    for (long k = 0; k < in; k++) largest = fabsf(row[k]) > largest ? fabsf(row[k]) : largest;
    for (long k = 0; k < in; k++) steps[k] = (int16_t)lrintf(row[k] * (2047.0f / largest));
    for (long o = 0; o < out; o++, weight += in) {
        int32_t sum = 0;
        for (long k = 0; k < in; k += LINE) __builtin_prefetch(weight + k + AHEAD);
        for (long k = 0; k < in; k++) sum += (int32_t)weight[k] * (int32_t)steps[k];
        result[o] = (float)sum * scales[o] * (largest / 2047.0f);
    }
}

/* result [rows, width] = rows scaled to unit mean square, times weight [width]; `width` a multiple of 8. */
void rms_norm(const float *rows, const float *weight, float *result, long num_rows, long width, float eps) {
    for (long n = 0; n < num_rows; n++, rows += width, result += width) {
        lanes squares = {0};
        for (long k = 0; k < width; k += LANES) squares += load_float(rows + k) * load_float(rows + k);
        float total = 0;
        for (int i = 0; i < LANES; i++) total += squares[i];
        float scale = 1.0f / sqrtf(total / width + eps);
        for (long k = 0; k < width; k += LANES)
            store(result + k, load_float(rows + k) * scale * load_float(weight + k));
    }
}

/* e^x for x <= 0, 0 where it is below 1.6e-38; relative error below 2e-7 (Cephes' polynomial). */
static inline float exponential(float power) {
    float x = power < -87.0f ? -87.0f : power;
    float whole = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* the nearest integer, by rounding */
    float rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    float series = 1.9875691500e-4f;
    series = series * rest + 1.3981999507e-3f;
    series = series * rest + 8.3334519073e-3f;
    series = series * rest + 4.1665795894e-2f;
    series = series * rest + 1.6666665459e-1f;
    series = series * rest + 5.0000001201e-1f;
    union { uint32_t bits; float value; } scale = {((uint32_t)(int32_t)whole + 127) << 23}; /* 2 to that integer */
    return power < -87.0f ? 0.0f : (series * rest * rest + rest + 1.0f) * scale.value;
}

/* result [rows, width] = silu(gate) * up of rows [rows, 2 * width], gates first. */
void gate_silu(const float *rows, float *restrict result, long num_rows, long width) {
    for (long n = 0; n < num_rows; n++, rows += 2 * width, result += width)
        for (long k = 0; k < width; k++) {
            float gate = rows[k], small = exponential(gate < 0 ? gate : -gate);
            result[k] = gate * rows[width + k] * (gate < 0 ? small : 1.0f) / (1.0f + small);
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

/* Scores [width] become e^(score - largest). */
static void exponentials(float *scores, long width) {
    lanes high = load_float(scores);
    long whole = width / LANES * LANES;
    for (long k = LANES; k < whole; k += LANES) {
        lanes next = load_float(scores + k);
        switches higher = next > high;
        high = (lanes)((higher & (switches)next) | (~higher & (switches)high));
    }
    float largest = high[0];
    for (int i = 1; i < LANES; i++) largest = high[i] > largest ? high[i] : largest;
    for (long k = whole; k < width; k++) largest = scores[k] > largest ? scores[k] : largest;
    for (long k = 0; k < width; k++) scores[k] = exponential(scores[k] - largest);
}

/* Part of a head, PARTS times eight numbers of values [width, dim], mixed by two rows of shares [width] at once. Sums
 * run over the rows in their order: rows whose share is nothing change no bit, wherever they stand. */
#define MIX(PARTS)                                                                                                     \
    static inline void mix_##PARTS(const float *one, const float *two, const float *values, float *to_one,            \
                                   float *to_two, long width, long dim) {                                              \
        lanes sum[2][PARTS];                                                                                           \
        float total[2] = {0, 0};                                                                                       \
        memset(sum, 0, sizeof sum);                                                                                    \
        for (long s = 0; s < width; s++) {                                                                             \
            total[0] += one[s];                                                                                        \
            total[1] += two[s];                                                                                        \
            UNROLL for (int part = 0; part < PARTS; part++) {                                                          \
                lanes value = load_float(values + s * dim + part * LANES);                                             \
                sum[0][part] += one[s] * value;                                                                        \
                sum[1][part] += two[s] * value;                                                                        \
            }                                                                                                          \
        }                                                                                                              \
        UNROLL for (int part = 0; part < PARTS; part++) {                                                              \
            store(to_one + part * LANES, sum[0][part] / total[0]);                                                     \
            store(to_two + part * LANES, sum[1][part] / total[1]);                                                     \
        }                                                                                                              \
    }
MIX(4)
MIX(1)

/* Writes keys and values of heads [rows, heads + 2 * kv_heads, dim], queries first, into the places [rows] of the rows
 * that are kept, [kv_heads, capacity, dim] each, and lets every query attend to the first `visible` of those.
 *
 * mask: [group * rows, visible], added to the scores; scratch: group * rows * (visible + dim) numbers.
 * result: [rows, heads * dim]; `dim` a multiple of 8, `visible` at least 8. */
void attend(const float *heads, float *keys, float *values, const int64_t *places, const float *mask, float *scratch,
            float *result, long num_rows, long num_heads, long kv_heads, long dim, long capacity, long visible,
            float scaling) {
    long group = num_heads / kv_heads, folded = group * num_rows, all = num_heads + 2 * kv_heads;
    float *queries = scratch, *scores = queries + folded * dim;
    for (long h = 0; h < kv_heads; h++, keys += capacity * dim, values += capacity * dim) {
        for (long n = 0; n < num_rows; n++) {
            const float *row = heads + n * all * dim;
            memcpy(keys + places[n] * dim, row + (num_heads + h) * dim, 4 * dim);
            memcpy(values + places[n] * dim, row + (num_heads + kv_heads + h) * dim, 4 * dim);
            for (long g = 0; g < group; g++)
                for (long k = 0; k < dim; k++)
                    queries[(g * num_rows + n) * dim + k] = scaling * row[(h * group + g) * dim + k];
        }
        product(queries, keys, mask, scores, folded, dim, visible, visible);
        for (long r = 0; r < folded; r++) exponentials(scores + r * visible, visible);
        for (long r = 0; r < folded; r += 2) {
            long next = r + 1 < folded ? r + 1 : r;
            const float *one = scores + r * visible, *two = scores + next * visible;
            float *to_one = result + (r % num_rows * num_heads + h * group + r / num_rows) * dim;
            float *to_two = result + (next % num_rows * num_heads + h * group + next / num_rows) * dim;
            long k = 0;
            for (; k + 4 * LANES <= dim; k += 4 * LANES)
                mix_4(one, two, values + k, to_one + k, to_two + k, visible, dim);
            for (; k < dim; k += LANES)
                mix_1(one, two, values + k, to_one + k, to_two + k, visible, dim);
        }
    }
}
