// Fields of Experts of one layer on CPU, float32, without features in memory:
//
//     < phi(K z), 1 >,    K^T phi'(K z),    K^T [phi''(K z) K v],    and the backward pass of the second.
//
// z (batch, height, width); K: `channels` filters of side S, applied without continuation; phi: quartic splines, one
// per image and channel. Rows of V vectors of neighbouring pixels, 2 or 3, go through all channels while in cache:
//
//     features   x_c = sum_tap K_c[tap] z[pixel + tap]              (registers: CHANNELS x V)
//     splines    g_c = phi_c'(x_c), looked up by permutes           (one channel's table in registers)
//     adjoint    out[pixel + tap] += sum_c K_c[tap] g_c[pixel]      (registers: S rows x TOGETHER)
//
// The image is cut into bands of BAND rows whose results overlap by S - 1 rows and are added in a fixed order, so that
// results do not depend on the number of threads.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16, CHANNELS = 8, GROUP = 3;
constexpr bool WIDE = true;  // there are registers for S rows of V vectors
#else
constexpr int LANES = 8, CHANNELS = 4, GROUP = 1;
constexpr bool WIDE = false;
#endif
constexpr int BAND = 32;
constexpr int LOOKUP = 96;  // numbers in a table that permutes can look up

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef float loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

inline vec load(const float *p) { return *reinterpret_cast<const loose *>(p); }
// Loaded once: compilers would load what is not aligned anew for each multiply-add, and each time wait for two lines.
inline vec held(const float *p) {
    vec v = load(p);
#ifdef __AVX512F__
    asm("" : "+v"(v));
#endif
    return v;
}
inline void store(float *p, vec v) { *reinterpret_cast<loose *>(p) = v; }
inline vec all(float a) { return a - vec{}; }

// What g is, and of what the table of a spline consists: first differences of its coefficients, second differences, or
// the coefficients themselves.
enum Mode {
    SLOPE = 0,   // g = phi'(x)
    CURVED = 1,  // g = phi''(x) K tangent
    VALUE = 2,   // g = phi'(x), and the sum of phi(x)
};

struct Problem {
    const float *z, *tangent;
    int64_t batch, height, width, channels, bands, blocks, block;  // pixels of a block: V * LANES
    int nodes;
    float start, scale;  // low / spacing and 1 / spacing of the nodes
    std::vector<float> filters, mirrored, tables;  // filters by group, tap, channel; mirrored by channel, column, row
};

// The table of one channel, up to LOOKUP numbers, looked up for a vector of indices.
struct Table {
#ifdef __AVX512F__
    __m512 t[6];
    explicit Table(const float *entries) {
        for (int j = 0; j < 6; ++j) t[j] = _mm512_loadu_ps(entries + 16 * j);
    }
    vec operator()(ivec k) const {  // a permute reads one of 32 numbers
        const __m512i i = (__m512i)k;
        const __mmask16 first = _mm512_cmplt_epi32_mask(i, _mm512_set1_epi32(32));
        const __mmask16 last = _mm512_cmpge_epi32_mask(i, _mm512_set1_epi32(64));
        const __m512 middle = _mm512_permutex2var_ps(t[2], i, t[3]);
        const __m512 low = _mm512_mask_mov_ps(middle, first, _mm512_permutex2var_ps(t[0], i, t[1]));
        return (vec)_mm512_mask_mov_ps(low, last, _mm512_permutex2var_ps(t[4], i, t[5]));
    }
#else
    const float *entries;
    explicit Table(const float *entries) : entries(entries) {}
    vec operator()(ivec k) const {
        vec found;
        for (int l = 0; l < LANES; ++l) found[l] = entries[k[l]];
        return found;
    }
#endif
};

// Where a vector of features lies: interval k, f in [0, 1] in it, in units of the spacing; v beyond the range if not
// `inside`.
struct Place {
    vec v, inside, f, e, f2, e2;
    ivec k;
    Place(const Problem &p, vec x) : v(x * p.scale) {
        const vec start = all(p.start), end = all(p.start + (p.nodes - 4));
        inside = v > start ? v : start;  // nan: the first piece
        inside = inside < end ? inside : end;
        k = __builtin_convertvector(inside - start, ivec);
        k = k < p.nodes - 5 ? k : p.nodes - 5 - ivec{};
        f = inside - (start + __builtin_convertvector(k, vec)), e = 1.0f - f, f2 = f * f, e2 = e * e;
    }
    vec slope(vec d0, vec d1, vec d2, vec d3) const {  // cubic B-splines
        const vec b1 = f2 * (0.5f * f - 1.0f) + 2.0f / 3, b2 = e2 * (0.5f * e - 1.0f) + 2.0f / 3;
        return (d0 * (e2 * e) + d3 * (f2 * f)) * (1.0f / 6) + (d1 * b1 + d2 * b2);
    }
    vec curvature(vec q0, vec q1, vec q2) const {  // quadratic B-splines
        const vec bent = 0.5f * (e2 * q0 + f2 * q2) + (0.5f + f * e) * q1;
        return v == inside ? bent : vec{};
    }
};

// g for one vector of features x; with VALUE phi(x) is added to `sum` where the mask `counted` is 1.
template <int MODE>
inline vec potential(const Table &table, const Problem &p, vec x, vec tangent, vec counted, vec &sum) {
    const Place at(p, x);
    const ivec k = at.k;
    if (MODE == CURVED) return at.curvature(table(k), table(k + 1), table(k + 2)) * tangent * (p.scale * p.scale);
    if (MODE == SLOPE) return at.slope(table(k), table(k + 1), table(k + 2), table(k + 3)) * p.scale;
    const vec centre = table(k + 2), d1 = centre - table(k + 1), d2 = table(k + 3) - centre;
    const vec d0 = table(k + 1) - table(k), d3 = table(k + 4) - table(k + 3), s = at.slope(d0, d1, d2, d3);
    const vec f = at.f;
    // quartic B-splines, times 24; the middle one is what the others leave of 1
    const vec w1 = 11.0f + f * (f * (f * (12.0f - 4.0f * f) - 6.0f) - 12.0f);
    const vec w3 = 1.0f + f * (4.0f + f * (6.0f + f * (4.0f - 4.0f * f)));
    const vec steps = (d2 + d3) * (at.f2 * at.f2) - (d0 + d1) * (at.e2 * at.e2) + (d2 * w3 - d1 * w1);
    sum += counted * (centre + steps * (1.0f / 24) + s * (at.v - at.inside));
    return s * p.scale;
}

// CHANNELS features at a block of pixels
template <int S, int V>
inline void features(const float *z, int64_t stride, const float *filters, vec (*x)[V]) {
    vec sum[CHANNELS][V] = {};
    for (int dy = 0; dy < S; ++dy)
        for (int dx = 0; dx < S; ++dx, filters += CHANNELS) {
            vec shifted[V];
            for (int v = 0; v < V; ++v) shifted[v] = load(z + dy * stride + dx + v * LANES);
            for (int c = 0; c < CHANNELS; ++c)
                for (int v = 0; v < V; ++v) sum[c][v] += filters[c] * shifted[v];
        }
    for (int c = 0; c < CHANNELS; ++c)
        for (int v = 0; v < V; ++v) x[c][v] = sum[c][v];
}

// g: planes of channels `plane` apart, at a block of pixels to whose left lie LANES more; out: S rows
template <int S, int V>
inline void adjoint(const float *g, int64_t plane, const Problem &p, float *out) {
    constexpr int TOGETHER = WIDE ? V : 1;
    const int64_t stride = p.blocks * p.block;
    for (int v = 0; v < V; v += TOGETHER, out += TOGETHER * LANES, g += TOGETHER * LANES) {
        vec sum[S][TOGETHER];
        for (int dy = 0; dy < S; ++dy)
            for (int u = 0; u < TOGETHER; ++u) sum[dy][u] = load(out + dy * stride + u * LANES);
        const float *k = p.mirrored.data();
        for (int64_t c = 0; c < p.channels; ++c)
            for (int dx = 0; dx < S; ++dx, k += S) {
                vec shifted[TOGETHER];
                for (int u = 0; u < TOGETHER; ++u) shifted[u] = load(g + c * plane - dx + u * LANES);
                for (int dy = 0; dy < S; ++dy)
                    for (int u = 0; u < TOGETHER; ++u) sum[dy][u] += k[dy] * shifted[u];
            }
        for (int dy = 0; dy < S; ++dy)
            for (int u = 0; u < TOGETHER; ++u) store(out + dy * stride + u * LANES, sum[dy][u]);
    }
}

// Rows of an image, continued by zeros.
void copy(std::vector<float> &to, const float *image, const Problem &p, int64_t first, int64_t rows) {
    const int64_t stride = p.blocks * p.block + LANES;
    to.assign(rows * stride, 0.0f);
    for (int64_t r = 0; r < rows; ++r)
        std::memcpy(to.data() + r * stride, image + (first + r) * p.width, p.width * sizeof(float));
}

struct Workspace {
    std::vector<float> z, tangent, g, slope, bent, moments;
};

// 1 at the pixels of a vector that have a feature, 0 beyond the right end of the image.
inline vec counts(int64_t features, int64_t from) {
    ivec column;
    for (int l = 0; l < LANES; ++l) column[l] = l;
    return column < static_cast<int>(features - from) ? all(1) : vec{};
}

// The features whose rows begin with `first`: their part of the result goes to `out` (if there is one), the sum of phi
// is returned.
template <int S, int V, int MODE> double band(const Problem &p, Workspace &w, int64_t image, int64_t first, float *out) {
    constexpr int BLOCK = V * LANES, ROW = LANES + BLOCK;
    const int64_t rows = std::min<int64_t>(BAND, p.height - S + 1 - first), offset = image * p.height * p.width;
    const int64_t stride = p.blocks * p.block + LANES;
    copy(w.z, p.z + offset, p, first, rows + S - 1);
    if (MODE == CURVED) copy(w.tangent, p.tangent + offset, p, first, rows + S - 1);
    double total = 0;
    for (int64_t r = 0; r < rows; ++r) {
        w.g.assign(p.channels * ROW, 0.0f);
        vec sum{};
        for (int64_t b = 0; b < p.blocks; ++b) {
            const int64_t here = r * stride + b * BLOCK;
            for (int64_t c = 0; c < p.channels; c += CHANNELS) {
                vec x[CHANNELS][V], t[CHANNELS][V];
                features<S, V>(w.z.data() + here, stride, p.filters.data() + c * S * S, x);
                if (MODE == CURVED) features<S, V>(w.tangent.data() + here, stride, p.filters.data() + c * S * S, t);
                for (int j = 0; j < CHANNELS; ++j) {
                    const Table table(p.tables.data() + (image * p.channels + c + j) * LOOKUP);
                    float *g = w.g.data() + (c + j) * ROW;
                    store(g, load(g + BLOCK));
                    for (int v = 0; v < V; ++v) {
                        const vec counted = counts(p.width - S + 1, b * BLOCK + v * LANES);
                        const vec found = potential<MODE>(table, p, x[j][v], t[j][v], counted, sum);
                        store(g + LANES + v * LANES, counted * found);
                    }
                }
            }
            if (out) adjoint<S, V>(w.g.data() + LANES, ROW, p, out + (r * p.blocks + b) * BLOCK);
        }
        for (int l = 0; l < LANES; ++l) total += sum[l];
    }
    return total;
}

// Bands by work(workspace, index of the band, its part of the result), then the overlaps of the parts, in their order.
template <int S, class Work> void run(const Problem &p, float *out, int threads, const Work &work) {
    const int64_t stride = p.blocks * p.block, size = (BAND + S - 1) * stride;
    std::vector<float> parts(out ? p.batch * p.bands * size : 0);
#pragma omp parallel num_threads(threads)
    {
        Workspace w;
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < p.batch * p.bands; ++i) work(w, i, out ? parts.data() + i * size : nullptr);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < (out ? p.batch * p.height : 0); ++i) {
            const int64_t row = i % p.height, n = std::min(row / BAND, p.bands - 1), within = row - n * BAND;
            const float *own = parts.data() + (i / p.height * p.bands + n) * size + within * stride;
            float *to = out + i * p.width;
            std::memcpy(to, own, p.width * sizeof(float));
            if (n && within < S - 1)
                for (int64_t x = 0; x < p.width; ++x) to[x] += own[x - size + BAND * stride];
        }
    }
}

template <int S, int V, int MODE> void forward(const Problem &p, float *out, double *energy, int threads) {
    std::vector<double> sums(p.batch * p.bands);
    run<S>(p, out, threads, [&](Workspace &w, int64_t i, float *part) {
        sums[i] = band<S, V, MODE>(p, w, i / p.bands, i % p.bands * BAND, part);
    });
    for (int64_t i = 0; energy && i < p.batch; ++i)
        energy[i] = std::accumulate(sums.begin() + i * p.bands, sums.begin() + (i + 1) * p.bands, 0.0);
}

// The backward pass of K^T phi'(K z) for the gradient w that came back: < w, K^T phi'(K z) > = < K w, phi'(K z) > has
// the gradients K^T q in z, with q = phi''(K z) K w, the correlations of q with z and of phi'(K z) with w in K, and in
// the coefficients sums of K w times cubic B-splines. These are collected as moments: sums of K w f^p by interval.

typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
constexpr int COPIES = 2;  // of the moments: neighbouring points often share an interval, and would wait for each other

inline void add_moments(float *moments, int intervals, const Place &at, vec t) {
    const auto pick = [](int a, int b, int c, int d) {  // of four neighbours of each of two vectors
        const int which[4] = {a, b, c, d};
        ivec found;
        for (int l = 0; l < LANES; ++l) found[l] = l / 4 * 4 + which[l % 4] % 4 + which[l % 4] / 4 * LANES;
        return found;
    };
    const ivec low = pick(0, 4, 1, 5), high = pick(2, 6, 3, 7), front = pick(0, 1, 4, 5), back = pick(2, 3, 6, 7);
    const vec tf = t * at.f, tf2 = t * at.f2, tf3 = tf * at.f2;
    const vec a = __builtin_shuffle(t, tf, low), b = __builtin_shuffle(tf2, tf3, low);
    const vec c = __builtin_shuffle(t, tf, high), d = __builtin_shuffle(tf2, tf3, high);
    float m[4][LANES];  // of point 4 g + i: m[i][4 g ...]
    store(m[0], __builtin_shuffle(a, b, front)), store(m[1], __builtin_shuffle(a, b, back));
    store(m[2], __builtin_shuffle(c, d, front)), store(m[3], __builtin_shuffle(c, d, back));
    for (int l = 0; l < LANES; ++l) {
        float *sum = moments + 4 * (l % COPIES * intervals + at.k[l]);
        *reinterpret_cast<four *>(sum) += *reinterpret_cast<const four *>(m[l % 4] + l / 4 * 4);
    }
}

// The correlations of G channels with the images; their S G sums stay in registers.
template <int S, int G> void correlate(const Problem &p, const Workspace &w, int64_t rows, int64_t c, float *filters) {
    const int64_t stride = p.blocks * p.block + LANES, plane = rows * stride;
    for (int dy = 0; dy < S; ++dy) {
        vec sum[G][S] = {};
        for (const bool second : {false, true}) {
            const float *q = (second ? w.slope : w.bent).data() + c * plane + LANES;
            const float *z = (second ? w.tangent : w.z).data() + dy * stride;
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t i = r * stride; i < r * stride + p.blocks * p.block; i += LANES) {
                    vec own[G];
                    for (int j = 0; j < G; ++j) own[j] = load(q + j * plane + i);
                    for (int dx = 0; dx < S; ++dx) {
                        const vec shifted = held(z + i + dx);
                        for (int j = 0; j < G; ++j) sum[j][dx] += own[j] * shifted;
                    }
                }
        }
        for (int j = 0; j < G; ++j)
            for (int dx = 0; dx < S; ++dx)
                for (int l = 0; l < LANES; ++l) filters[((c + j) * S + dy) * S + dx] += sum[j][dx][l];
    }
}

template <int S, int V>
void backward_band(const Problem &p, Workspace &w, int64_t image, int64_t first, float *out, float *filters,
                   float *coefficients) {
    const int64_t rows = std::min<int64_t>(BAND, p.height - S + 1 - first), offset = image * p.height * p.width;
    const int64_t stride = p.blocks * p.block + LANES, plane = rows * stride;
    const int intervals = p.nodes - 4;
    constexpr int BLOCK = V * LANES;
    copy(w.z, p.z + offset, p, first, rows + S - 1);
    copy(w.tangent, p.tangent + offset, p, first, rows + S - 1);
    w.slope.assign(p.channels * plane, 0.0f), w.bent.assign(p.channels * plane, 0.0f);
    w.moments.assign(p.channels * COPIES * intervals * 4, 0.0f);
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t b = 0; b < p.blocks; ++b)
            for (int64_t c = 0; c < p.channels; c += CHANNELS) {
                vec x[CHANNELS][V], t[CHANNELS][V];
                const int64_t here = r * stride + b * BLOCK;
                features<S, V>(w.z.data() + here, stride, p.filters.data() + c * S * S, x);
                features<S, V>(w.tangent.data() + here, stride, p.filters.data() + c * S * S, t);
                for (int j = 0; j < CHANNELS; ++j) {
                    const Table table(p.tables.data() + (image * p.channels + c + j) * LOOKUP);
                    for (int v = 0; v < V; ++v) {
                        const vec counted = counts(p.width - S + 1, b * BLOCK + v * LANES) * p.scale;
                        const Place at(p, x[j][v]);
                        const vec d0 = table(at.k), d1 = table(at.k + 1), d2 = table(at.k + 2), d3 = table(at.k + 3);
                        const vec weight = counted * t[j][v], bent = at.curvature(d1 - d0, d2 - d1, d3 - d2);
                        const int64_t to = (c + j) * plane + here + LANES + v * LANES;
                        store(w.slope.data() + to, at.slope(d0, d1, d2, d3) * counted);
                        store(w.bent.data() + to, bent * weight * p.scale);
                        add_moments(w.moments.data() + (c + j) * COPIES * intervals * 4, intervals, at, weight);
                    }
                }
            }
    for (int64_t i = 0; out && i < rows * p.blocks; ++i)
        adjoint<S, V>(w.bent.data() + i / p.blocks * stride + i % p.blocks * p.block + LANES, plane, p, out + i * BLOCK);
    int64_t c = 0;
    for (; c + GROUP <= p.channels; c += GROUP) correlate<S, GROUP>(p, w, rows, c, filters);
    for (; c < p.channels; ++c) correlate<S, 1>(p, w, rows, c, filters);
    // 6 B_m(f) = sum_p cubic[m][p] f^p; what belongs to the difference of two coefficients belongs to both
    constexpr float cubic[4][4] = {{1, -3, 3, -1}, {4, 0, -6, 3}, {1, 3, 3, -3}, {0, 0, 0, 1}};
    std::vector<float> differences(p.nodes - 1);
    for (int64_t c = 0; c < p.channels; ++c) {
        const float *first = w.moments.data() + c * COPIES * intervals * 4, *second = first + intervals * 4;
        std::fill(differences.begin(), differences.end(), 0.0f);
        for (int m = 0; m < 4; ++m)
            for (int i = 0; i < intervals; ++i)
                for (int n = 0; n < 4; ++n)
                    differences[i + m] += cubic[m][n] / 6 * (first[4 * i + n] + second[4 * i + n]);
        for (int i = 0; i < p.nodes - 1; ++i) {
            coefficients[c * p.nodes + i] -= differences[i];
            coefficients[c * p.nodes + i + 1] += differences[i];
        }
    }
}

template <int S, int V>
void backward(const Problem &p, int64_t channels, float *out, float *filters, float *coefficients, int threads) {
    const int64_t tasks = p.batch * p.bands, taps = p.channels * S * S, numbers = p.channels * p.nodes;
    std::vector<float> by_band(tasks * (taps + numbers));
    run<S>(p, out, threads, [&](Workspace &w, int64_t i, float *part) {
        float *own = by_band.data() + i * (taps + numbers);
        backward_band<S, V>(p, w, i / p.bands, i % p.bands * BAND, part, own, own + taps);
    });
    std::fill_n(filters, channels * S * S, 0.0f);
    std::fill_n(coefficients, p.batch * channels * p.nodes, 0.0f);
    for (int64_t i = 0; i < tasks; ++i) {
        const float *own = by_band.data() + i * (taps + numbers);
        float *to = coefficients + i / p.bands * channels * p.nodes;
        for (int64_t k = 0; k < channels * S * S; ++k) filters[k] += own[k];
        for (int64_t k = 0; k < channels * p.nodes; ++k) to[k] += own[taps + k];
    }
}

// Filters and tables in the order in which they are read; filters that are zero fill the last group of channels.
void prepare(Problem &p, int side, int mode, const float *kernels, int64_t channels, const float *coefficients) {
    p.channels = (channels + CHANNELS - 1) / CHANNELS * CHANNELS;
    const int taps = side * side;
    p.filters.assign(p.channels * taps, 0.0f);
    p.mirrored.assign(p.channels * taps, 0.0f);
    for (int64_t i = 0; i < channels * taps; ++i) {
        const int64_t c = i / taps, tap = i % taps;
        p.filters[(c / CHANNELS * taps + tap) * CHANNELS + c % CHANNELS] = kernels[i];
        p.mirrored[c * taps + tap % side * side + tap / side] = kernels[i];
    }
    p.tables.assign(p.batch * p.channels * LOOKUP, 0.0f);
    for (int64_t i = 0; i < p.batch * channels; ++i) {
        float *table = p.tables.data() + (i / channels * p.channels + i % channels) * LOOKUP;
        std::copy_n(coefficients + i * p.nodes, p.nodes, table);
        for (int d = mode == SLOPE ? 1 : mode == CURVED ? 2 : 0; d > 0; --d)
            for (int k = 0; k < p.nodes - 1; ++k) table[k] = table[k + 1] - table[k];
    }
    p.bands = (p.height - side + BAND) / BAND;
    // three vectors keep the registers busier by a tenth; two where they leave less beyond the right end to waste
    const auto blocks = [&](int64_t block) { return (p.width + block - 1) / block; };
    p.block = (blocks(2 * LANES) * 22 < blocks(3 * LANES) * 30 ? 2 : 3) * LANES;
    p.blocks = blocks(p.block);
}

}  // namespace

#define EACH_WIDTH(CALL, S) \
    if (p.block == 2 * LANES) { CALL(S, 2); } \
    else { CALL(S, 3); }
#define EACH_SIDE(CALL) \
    if (side == 3) { EACH_WIDTH(CALL, 3) } \
    else if (side == 5) { EACH_WIDTH(CALL, 5) } \
    else if (side == 7) { EACH_WIDTH(CALL, 7) } \
    else return 1; \
    return 0;

// `out` (batch, height, width) or null, `energy` (batch) or null. Answers 0, or 1 for a side of filters or a number of
// nodes that is not served.
extern "C" int gnc_experts(const float *z, const float *tangent, const float *kernels, const float *coefficients,
                           int64_t batch, int64_t height, int64_t width, int64_t channels, int side, int nodes,
                           float start, float scale, int mode, float *out, double *energy, int threads) {
    if (nodes > LOOKUP) return 1;
    Problem p{z, tangent, batch, height, width, 0, 0, 0, 0, nodes, start, scale, {}, {}, {}};
    prepare(p, side, mode, kernels, channels, coefficients);
#define CALL(S, V) \
    mode == SLOPE ? forward<S, V, SLOPE>(p, out, energy, threads) \
                  : mode == CURVED ? forward<S, V, CURVED>(p, out, energy, threads) \
                                   : forward<S, V, VALUE>(p, out, energy, threads)
    EACH_SIDE(CALL)
#undef CALL
}

// `out` (batch, height, width) or null, `g_kernels` and `g_coefficients` shaped like theirs.
extern "C" int gnc_experts_backward(const float *z, const float *tangent, const float *kernels,
                                    const float *coefficients, int64_t batch, int64_t height, int64_t width,
                                    int64_t channels, int side, int nodes, float start, float scale, float *out,
                                    float *g_kernels, float *g_coefficients, int threads) {
    if (nodes > LOOKUP) return 1;
    Problem p{z, tangent, batch, height, width, 0, 0, 0, 0, nodes, start, scale, {}, {}, {}};
    prepare(p, side, SLOPE, kernels, channels, coefficients);
#define CALL(S, V) backward<S, V>(p, channels, out, g_kernels, g_coefficients, threads)
    EACH_SIDE(CALL)
#undef CALL
}
