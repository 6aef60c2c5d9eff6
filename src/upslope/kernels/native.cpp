// Products and attention of decoding, in float32. A decode step multiplies few rows by large weights, where BLAS
// libraries reach a fraction of the machine; weights packed once in panels of columns are read in order, once a step.
// Written with GCC's vector extensions, so that one source serves AVX2, AVX-512 and NEON.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int WIDTH = 16, TILE = 12;  // floats a register; rows a tile: 24 of 32 registers accumulate
#elif defined(__AVX__)
constexpr int WIDTH = 8, TILE = 6;  // 12 of 16
#else
constexpr int WIDTH = 4, TILE = 8;  // 16 of 32 (NEON), 16 of 16 (SSE)
#endif
constexpr int PANEL = 2 * WIDTH;  // columns a panel
constexpr int PAGE = 16;          // tokens a page of the key-value cache
constexpr int HEADS = 4;          // query heads of one key-value head that are worked on together

constexpr int64_t BLOCK = 240;    // rows of x that stay in the cache while all weights pass by
constexpr int LANES = PAGE / WIDTH;

typedef float Lane __attribute__((vector_size(WIDTH * 4), aligned(4)));
typedef int32_t Bits __attribute__((vector_size(WIDTH * 4)));

inline Lane load(const float* p) { return *reinterpret_cast<const Lane*>(p); }
inline void store(float* p, Lane v) { *reinterpret_cast<Lane*>(p) = v; }

// out[r, 0:PANEL] = x[r, 0:K] . panel[0:K, 0:PANEL] for R rows; `next` is the panel to fetch meanwhile.
template <int R>
inline void tile(const float* x, const float* panel, const float* next, int64_t K, float* out, int64_t stride) {
    Lane left[R] = {}, right[R] = {};
    for (int64_t k = 0; k < K; ++k) {
        const Lane a = load(panel + k * PANEL), b = load(panel + k * PANEL + WIDTH);
        if (next) {
            __builtin_prefetch(next + k * PANEL, 0, 2);
            if (WIDTH == 16) __builtin_prefetch(next + k * PANEL + WIDTH, 0, 2);
        }
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            left[r] += x[r * K + k] * a;
            right[r] += x[r * K + k] * b;
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
        store(out + r * stride, left[r]);
        store(out + r * stride + WIDTH, right[r]);
    }
}

template <int R>
void tiles(int64_t rows, const float* x, const float* panel, const float* next, int64_t K, float* out, int64_t stride) {
    if (rows == R) return tile<R>(x, panel, next, K, out, stride);
    if constexpr (R > 1) tiles<R - 1>(rows, x, panel, next, K, out, stride);
}

// Rows of the next tile: whole tiles, and the last two of nearly equal height, since short tiles are slow.
inline int64_t tile_rows(int64_t left) {
    if (left <= TILE) return left;
    return left < 2 * TILE ? (left + 1) / 2 : TILE;
}

void panel_product(const float* x, const float* panel, const float* next, const float* bias, float* y, int64_t M,
                   int64_t N, int64_t K, int64_t columns) {
    float block[TILE * PANEL];
    const bool direct = columns == PANEL && !bias;
    for (int64_t m = 0; m < M;) {
        const int64_t rows = tile_rows(M - m);
        tiles<TILE>(rows, x + m * K, panel, m ? nullptr : next, K, direct ? y + m * N : block, direct ? N : PANEL);
        for (int64_t r = 0; !direct && r < rows; ++r)
            for (int64_t c = 0; c < columns; ++c) y[(m + r) * N + c] = block[r * PANEL + c] + (bias ? bias[c] : 0.0f);
        m += rows;
    }
}

// exp(x) for x <= 0, within 2 units in the last place; below -87 it is 0.
inline Lane exponential(Lane x) {
    const Bits tiny = x < -87.0f;
    x = tiny ? Lane{} : x;
    const Lane shifted = x * 1.44269504f + 12582912.0f;  // adding 1.5 * 2^23 rounds to an integer
    const Lane n = shifted - 12582912.0f;
    const Lane r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Lane p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const Bits scale = (__builtin_convertvector(n, Bits) + 127) << 23;
    return tiny ? Lane{} : p * reinterpret_cast<Lane>(scale);
}

struct Cache {  // one layer: keys [pages, kv_heads, dim, PAGE], values [pages, kv_heads, PAGE, width], width = dim padded
    float *keys, *values;
    int64_t kv_heads, dim, width;
    float* key(int64_t page, int64_t head) const { return keys + (page * kv_heads + head) * dim * PAGE; }
    float* value(int64_t page, int64_t head) const { return values + (page * kv_heads + head) * PAGE * width; }
};

// One row's attention of R query heads that share a key-value head, over tokens first..last of its pages.
template <int R>
void attend_heads(const Cache& cache, const float* query, const int64_t* pages, int64_t head, int64_t first,
                  int64_t last, float scale, float* scores, float* out) {
    const int64_t from = first / PAGE, to = last / PAGE + 1, capacity = to * PAGE;
    float best[R];
    std::fill(best, best + R, -INFINITY);
    for (int64_t p = from; p < to; ++p) {
        const float* key = cache.key(pages[p], head);
        const float* next = cache.key(pages[std::min(p + 1, to - 1)], head);
        Lane dots[R][LANES] = {};
        for (int64_t d = 0; d < cache.dim; ++d) {
            __builtin_prefetch(next + d * PAGE);  // pages lie anywhere, so the processor does not foresee them
#pragma GCC unroll 4
            for (int l = 0; l < LANES; ++l) {
                const Lane k = load(key + d * PAGE + l * WIDTH);
#pragma GCC unroll 4
                for (int r = 0; r < R; ++r) dots[r][l] += query[r * cache.dim + d] * k;
            }
        }
        const int64_t begin = std::max<int64_t>(0, first - p * PAGE), end = std::min<int64_t>(PAGE, last + 1 - p * PAGE);
        for (int r = 0; r < R; ++r) {
            float* at = scores + r * capacity + p * PAGE;
#pragma GCC unroll 4
            for (int l = 0; l < LANES; ++l) store(at + l * WIDTH, dots[r][l] * scale);
            std::fill(at, at + begin, -INFINITY);
            std::fill(at + end, at + PAGE, -INFINITY);
            for (int64_t i = begin; i < end; ++i) best[r] = std::max(best[r], at[i]);
        }
    }
    for (int r = 0; r < R; ++r) {
        float* at = scores + r * capacity;
        float sum = 0.0f;
        Lane mass = {};
        for (int64_t i = from * PAGE; i < capacity; i += WIDTH) {
            const Lane weight = exponential(load(at + i) - best[r]);
            store(at + i, weight);
            mass += weight;
        }
        for (int l = 0; l < WIDTH; ++l) sum += mass[l];
        for (int64_t i = from * PAGE; i < capacity; i += WIDTH) store(at + i, load(at + i) / sum);
    }
    for (int64_t d = 0; d < cache.width; d += PAGE) {
        Lane mixed[R][LANES] = {};
        for (int64_t p = from; p < to; ++p) {
            const float* value = cache.value(pages[p], head) + d;
            const float* next = cache.value(pages[std::min(p + 1, to - 1)], head) + d;
            const int64_t count = std::min<int64_t>(PAGE, last + 1 - p * PAGE);
            for (int64_t i = 0; i < count; ++i) {
                __builtin_prefetch(next + i * cache.width);
#pragma GCC unroll 4
                for (int l = 0; l < LANES; ++l) {
                    const Lane v = load(value + i * cache.width + l * WIDTH);
#pragma GCC unroll 4
                    for (int r = 0; r < R; ++r) mixed[r][l] += scores[r * capacity + p * PAGE + i] * v;
                }
            }
        }
        const int64_t count = std::min<int64_t>(PAGE, cache.dim - d);
        for (int r = 0; r < R; ++r) std::memcpy(out + r * cache.dim + d, mixed[r], count * sizeof(float));
    }
}

// x[0:rotary] turned by the position's angle, halves against halves.
void rotate(float* x, const float* cos, const float* sin, int64_t rotary) {
    const int64_t half = rotary / 2;
    for (int64_t i = 0; i < half; ++i) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cos[i] - b * sin[i];
        x[i + half] = b * cos[i + half] + a * sin[i + half];
    }
}

}  // namespace

extern "C" {

int64_t panel_columns() { return PANEL; }

// weight [N, K] -> packed [ceil(N / PANEL), K, PANEL], the last panel filled up with zeros.
void pack(const float* weight, float* packed, int64_t N, int64_t K) {
    const int64_t panels = (N + PANEL - 1) / PANEL;
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < panels; ++p)
        for (int64_t k0 = 0; k0 < K; k0 += PAGE)  // a block at a time, for the transposed writes to stay in cache
            for (int64_t c = 0; c < PANEL; ++c) {
                const float* row = p * PANEL + c < N ? weight + (p * PANEL + c) * K : nullptr;
                for (int64_t k = k0; k < std::min(K, k0 + PAGE); ++k) packed[(p * K + k) * PANEL + c] = row ? row[k] : 0;
            }
}

// y [M, N] = x [M, K] weight^T + bias; bias may be null.
void linear(const float* x, const float* packed, const float* bias, float* y, int64_t M, int64_t N, int64_t K) {
    const int64_t panels = (N + PANEL - 1) / PANEL;
    for (int64_t m = 0; m < M; m += BLOCK) {
#pragma omp parallel for schedule(static)
        for (int64_t p = 0; p < panels; ++p) {
            const float* panel = packed + p * K * PANEL;
            panel_product(x + m * K, panel, p + 1 < panels ? panel + K * PANEL : nullptr,
                          bias ? bias + p * PANEL : nullptr, y + m * N + p * PANEL, std::min(BLOCK, M - m), N, K,
                          std::min<int64_t>(PANEL, N - p * PANEL));
        }
    }
}

// One new token a row: qkv [B, (heads + 2 kv_heads) dim] is rotated (rotary > 0), its keys and values enter the cache
// at `positions` [B], and out [B, heads dim] is the attention over what the row's pages [B, max_pages] then hold,
// of at most `window` tokens (0: all).
void attend(float* qkv, const float* cos, const float* sin, int64_t rotary, float* keys, float* values,
            const int64_t* pages, int64_t max_pages, const int64_t* positions, float* out, int64_t B, int64_t heads,
            int64_t kv_heads, int64_t dim, int64_t width, float scale, int64_t window) {
    const Cache cache{keys, values, kv_heads, dim, width};
    const int64_t group = heads / kv_heads;
#pragma omp parallel
    {
        std::vector<float> scores(HEADS * max_pages * PAGE);
#pragma omp for schedule(static)
        for (int64_t item = 0; item < B * kv_heads; ++item) {
            const int64_t row = item / kv_heads, head = item % kv_heads, last = positions[row];
            float* queries = qkv + row * (heads + 2 * kv_heads) * dim + head * group * dim;
            float* key = qkv + row * (heads + 2 * kv_heads) * dim + (heads + head) * dim;
            const float* value = key + kv_heads * dim;
            for (int64_t q = 0; rotary && q < group; ++q) rotate(queries + q * dim, cos + row * rotary, sin + row * rotary, rotary);
            if (rotary) rotate(key, cos + row * rotary, sin + row * rotary, rotary);
            const int64_t* own = pages + row * max_pages;
            float* key_slot = cache.key(own[last / PAGE], head) + last % PAGE;
            for (int64_t d = 0; d < dim; ++d) key_slot[d * PAGE] = key[d];
            std::memcpy(cache.value(own[last / PAGE], head) + last % PAGE * width, value, dim * sizeof(float));
            const int64_t first = window ? std::max<int64_t>(0, last + 1 - window) : 0;
            float* result = out + row * heads * dim + head * group * dim;
            for (int64_t q = 0; q < group;) {
                const int64_t count = std::min<int64_t>(HEADS, group - q);
                const auto run = count == 4 ? attend_heads<4> : count == 3 ? attend_heads<3> : count == 2 ? attend_heads<2> : attend_heads<1>;
                run(cache, queries + q * dim, own, head, first, last, scale, scores.data(), result + q * dim);
                q += count;
            }
        }
    }
}
}
