// Quartic splines on CPU, float32: the compiled form of gnclib.spline.reference, both passes.
//
// x (planes, points); coefficients (planes, intervals + 4); matrix (5, 5): basis function m of an interval is
// sum_p matrix[m][p] f^p, f in [0, 1], so that phi = sum_p c_p f^p with c_p = sum_m coefficients[k + m] matrix[m][p].
// Outside of the range phi is continued linearly. `orders` is a bit mask: 1 phi, 2 phi', 4 phi''.
// Each plane has its own coefficients, so that planes are independent: no two threads ever write to the same place,
// and results do not depend on the number of threads.
#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#ifdef __AVX2__
#include <immintrin.h>
#endif

typedef float vec4 __attribute__((vector_size(16)));

namespace {

// One interval's coefficients, padded: c1..c4 lie together because phi' needs just those.
struct alignas(32) Piece {
    vec4 c;  // c1, c2, c3, c4
    float c0;
    float pad[3];
};

// Where x lies: interval k, local coordinate f in [0, 1], and how far `beyond` the range (0 inside), in intervals.
// `start` is low / spacing. The whole number is subtracted last, which keeps f accurate in the middle of the range.
inline void locate(float x, float start, float scale, int intervals, int &k, float &f, float &beyond) {
    const float v = x * scale;
    const float inside = std::min(std::max(start, v), start + static_cast<float>(intervals));  // nan: the first piece
    beyond = v - inside;
    k = std::min(static_cast<int>(inside - start), intervals - 1);
    f = inside - (start + static_cast<float>(k));
}

#ifdef __AVX2__
// A piece by its distance in bytes from the first one: an address without arithmetic in the loops below.
template <typename P>
inline P &piece_at(P *first, uint32_t bytes) {
    typedef std::conditional_t<std::is_const_v<P>, const char, char> byte;
    return *reinterpret_cast<P *>(reinterpret_cast<byte *>(first) + bytes);
}

// Eight points at once. The coefficients of eight pieces are loaded as rows of four and transposed.
struct Block {
    __m256 f, beyond, c1, c2, c3, c4;
    alignas(32) uint32_t k[8];  // where their pieces lie, in bytes

    Block(const float *x, const Piece *table, float start, float scale, int intervals) {
        const __m256 first = _mm256_set1_ps(start);
        const __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x), _mm256_set1_ps(scale));
        const __m256 inside = _mm256_min_ps(_mm256_max_ps(v, first), _mm256_set1_ps(start + intervals));
        const __m256i piece = _mm256_min_epi32(_mm256_cvttps_epi32(_mm256_sub_ps(inside, first)),
                                               _mm256_set1_epi32(intervals - 1));
        beyond = _mm256_sub_ps(v, inside);
        f = _mm256_sub_ps(inside, _mm256_add_ps(first, _mm256_cvtepi32_ps(piece)));
        static_assert(sizeof(Piece) == 1 << 5);
        _mm256_store_si256(reinterpret_cast<__m256i *>(k), _mm256_slli_epi32(piece, 5));
        __m256 r[4];
        for (int j = 0; j < 4; ++j)
            r[j] = _mm256_insertf128_ps(_mm256_castps128_ps256((__m128)piece_at(table, k[j]).c),
                                        (__m128)piece_at(table, k[j + 4]).c, 1);
        transpose(r);
        c1 = r[0], c2 = r[1], c3 = r[2], c4 = r[3];
    }

    // within each half: rows of points <-> rows of powers
    static void transpose(__m256 *r) {
        const __m256 a = _mm256_unpacklo_ps(r[0], r[1]), b = _mm256_unpackhi_ps(r[0], r[1]);
        const __m256 c = _mm256_unpacklo_ps(r[2], r[3]), d = _mm256_unpackhi_ps(r[2], r[3]);
        r[0] = _mm256_shuffle_ps(a, c, 0x44), r[1] = _mm256_shuffle_ps(a, c, 0xEE);
        r[2] = _mm256_shuffle_ps(b, d, 0x44), r[3] = _mm256_shuffle_ps(b, d, 0xEE);
    }
    __m256 c0(const Piece *t) const {
        const auto at = [=](int j) { return piece_at(t, k[j]).c0; };
        return _mm256_setr_ps(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7));
    }
    // polynomials in f; `a * f + b` is one instruction
    static __m256 fma(__m256 a, __m256 b, __m256 c) { return a * b + c; }
    __m256 value(__m256 c0) const { return fma(f, fma(f, fma(f, fma(f, c4, c3), c2), c1), c0); }
    __m256 slope() const { return fma(f, fma(f, fma(f, c4 * 4.0f, c3 * 3.0f), c2 * 2.0f), c1); }
    __m256 curvature() const { return fma(f, fma(f, c4 * 12.0f, c3 * 6.0f), c2 * 2.0f); }
    __m256 third() const { return fma(f, c4 * 24.0f, c3 * 6.0f); }
    __m256 where_inside(__m256 a) const {
        return _mm256_and_ps(a, _mm256_cmp_ps(beyond, _mm256_setzero_ps(), _CMP_EQ_OQ));
    }
};
#endif

template <int ORDERS>
void forward_plane(const float *x, const Piece *table, float start, float scale, int intervals, int64_t points,
                   float *value, float *first, float *second) {
    int64_t i = 0;
#ifdef __AVX2__
    for (; i + 8 <= points; i += 8) {
        const Block b(x + i, table, start, scale, intervals);
        const __m256 slope = b.slope();
        if (ORDERS & 1) _mm256_storeu_ps(value + i, b.value(b.c0(table)) + slope * b.beyond);
        if (ORDERS & 2) _mm256_storeu_ps(first + i, slope * scale);
        if (ORDERS & 4) _mm256_storeu_ps(second + i, b.where_inside(b.curvature() * (scale * scale)));
    }
#endif
    for (; i < points; ++i) {
        int k;
        float f, beyond;
        locate(x[i], start, scale, intervals, k, f, beyond);
        const Piece &p = table[k];
        const vec4 c = p.c;
        const float slope = c[0] + f * (2 * c[1] + f * (3 * c[2] + f * 4 * c[3]));
        if (ORDERS & 1) value[i] = p.c0 + f * (c[0] + f * (c[1] + f * (c[2] + f * c[3]))) + slope * beyond;
        if (ORDERS & 2) first[i] = slope * scale;
        if (ORDERS & 4) second[i] = beyond == 0 ? (2 * c[1] + f * (6 * c[2] + f * 12 * c[3])) * scale * scale : 0.0f;
    }
}

// `sums` holds LANES tables that are added up in the end: neighbouring points often share an interval, and sums that
// depend on each other would have to wait for each other.
constexpr int LANES = 4;

template <int ORDERS>
void backward_plane(const float *x, const Piece *table, float start, float scale, int intervals, int64_t points,
                    const float *g_value, const float *g_first, const float *g_second, float *g_x, Piece *sums) {
    int64_t i = 0;
#ifdef __AVX2__
    const __m256 zero = _mm256_setzero_ps();
    Piece *lanes[LANES];
    for (int l = 0; l < LANES; ++l) lanes[l] = sums + l * intervals;
    for (; i + 8 <= points; i += 8) {
        const Block b(x + i, table, start, scale, intervals);
        const __m256 f = b.f, f2 = f * f, f3 = f2 * f;
        __m256 gx = zero, w[4] = {zero, zero, zero, zero};
        if (ORDERS & 1) {
            const __m256 s = _mm256_loadu_ps(g_value + i), sb = s * b.beyond;
            gx = s * b.slope();
            w[0] = s * f + sb;
            w[1] = s * f2 + sb * f * 2.0f;
            w[2] = s * f3 + sb * f2 * 3.0f;
            w[3] = s * f2 * f2 + sb * f3 * 4.0f;
            for (int j = 0; j < 8; ++j) piece_at(lanes[j % LANES], b.k[j]).c0 += g_value[i + j];
        }
        if (ORDERS & 2) {
            const __m256 s = _mm256_loadu_ps(g_first + i) * scale;
            gx += b.where_inside(s * b.curvature());
            w[0] += s;
            w[1] += s * f * 2.0f;
            w[2] += s * f2 * 3.0f;
            w[3] += s * f3 * 4.0f;
        }
        if (ORDERS & 4) {
            const __m256 s = b.where_inside(_mm256_loadu_ps(g_second + i) * (scale * scale));
            gx += s * b.third();
            w[1] += s * 2.0f;
            w[2] += s * f * 6.0f;
            w[3] += s * f2 * 12.0f;
        }
        _mm256_storeu_ps(g_x + i, gx * scale);
        Block::transpose(w);
        for (int j = 0; j < 4; ++j) {
            Piece *lane = lanes[j % LANES];
            piece_at(lane, b.k[j]).c += (vec4)_mm256_castps256_ps128(w[j]);
            piece_at(lane, b.k[j + 4]).c += (vec4)_mm256_extractf128_ps(w[j], 1);
        }
    }
#endif
    for (; i < points; ++i) {
        int k;
        float f, beyond;
        locate(x[i], start, scale, intervals, k, f, beyond);
        const vec4 c = table[k].c;
        const float inside = beyond == 0 ? 1.0f : 0.0f, f2 = f * f, f3 = f2 * f;
        Piece &sum = sums[(i % LANES) * intervals + k];
        float gx = 0;
        if (ORDERS & 1) {
            const float s = g_value[i];
            gx += s * (c[0] + f * (2 * c[1] + f * (3 * c[2] + f * 4 * c[3])));
            sum.c += s * (vec4{f, f2, f3, f2 * f2} + beyond * vec4{1, 2 * f, 3 * f2, 4 * f3});
            sum.c0 += s;
        }
        if (ORDERS & 2) {
            const float s = g_first[i] * scale;
            gx += inside * s * (2 * c[1] + f * (6 * c[2] + f * 12 * c[3]));
            sum.c += s * vec4{1, 2 * f, 3 * f2, 4 * f3};
        }
        if (ORDERS & 4) {
            const float s = inside * g_second[i] * scale * scale;
            gx += s * (6 * c[2] + 24 * f * c[3]);
            sum.c += s * vec4{0, 2, 6 * f, 12 * f2};
        }
        g_x[i] = gx * scale;
    }
}

// Coefficients to polynomials, and the adjoint of that map.
void pack(const float *coefficients, const float *matrix, int intervals, Piece *out) {
    for (int k = 0; k < intervals; ++k) {
        float c[5] = {0, 0, 0, 0, 0};
        for (int m = 0; m < 5; ++m)
            for (int p = 0; p < 5; ++p) c[p] += coefficients[k + m] * matrix[5 * m + p];
        out[k].c0 = c[0];
        out[k].c = vec4{c[1], c[2], c[3], c[4]};
    }
}

void unpack(const Piece *sums, const float *matrix, int intervals, float *g_coefficients) {
    std::fill(g_coefficients, g_coefficients + intervals + 4, 0.0f);
    for (int k = 0; k < intervals; ++k) {
        Piece sum = sums[k];
        for (int l = 1; l < LANES; ++l) {
            sum.c += sums[l * intervals + k].c;
            sum.c0 += sums[l * intervals + k].c0;
        }
        for (int m = 0; m < 5; ++m) {
            g_coefficients[k + m] += sum.c0 * matrix[5 * m];
            for (int p = 1; p < 5; ++p) g_coefficients[k + m] += sum.c[p - 1] * matrix[5 * m + p];
        }
    }
}

inline const float *at(const float *base, int64_t offset) { return base ? base + offset : nullptr; }
inline float *at(float *base, int64_t offset) { return base ? base + offset : nullptr; }

template <int ORDERS>
void forward_all(const float *x, const float *coefficients, const float *matrix, float start, float scale, int intervals, int64_t planes,
                 int64_t points, float *value, float *first, float *second, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<Piece> packed(intervals);
#pragma omp for schedule(static)
        for (int64_t s = 0; s < planes; ++s) {
            const int64_t o = s * points;
            pack(coefficients + s * (intervals + 4), matrix, intervals, packed.data());
            forward_plane<ORDERS>(x + o, packed.data(), start, scale, intervals, points, at(value, o), at(first, o),
                                  at(second, o));
        }
    }
}

template <int ORDERS>
void backward_all(const float *x, const float *coefficients, const float *matrix, float start, float scale, int intervals, int64_t planes,
                  int64_t points, const float *g_value, const float *g_first, const float *g_second, float *g_x,
                  float *g_coefficients, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<Piece> packed(intervals), sums(LANES * intervals);
#pragma omp for schedule(static)
        for (int64_t s = 0; s < planes; ++s) {
            const int64_t o = s * points;
            pack(coefficients + s * (intervals + 4), matrix, intervals, packed.data());
            std::fill(sums.begin(), sums.end(), Piece{{0, 0, 0, 0}, 0, {0, 0, 0}});
            backward_plane<ORDERS>(x + o, packed.data(), start, scale, intervals, points, at(g_value, o), at(g_first, o),
                                   at(g_second, o), g_x + o, sums.data());
            unpack(sums.data(), matrix, intervals, g_coefficients + s * (intervals + 4));
        }
    }
}

}  // namespace

#define EACH_MASK(CALL) \
    switch (orders) {   \
        case 1: CALL(1); break; \
        case 2: CALL(2); break; \
        case 3: CALL(3); break; \
        case 4: CALL(4); break; \
        case 5: CALL(5); break; \
        case 6: CALL(6); break; \
        case 7: CALL(7); break; \
    }

extern "C" void gnc_spline_forward(const float *x, const float *coefficients, const float *matrix, float start,
                                   float scale, int intervals, int64_t planes, int64_t points, int orders, float *value, float *first,
                                   float *second, int threads) {
#define CALL(M) forward_all<M>(x, coefficients, matrix, start, scale, intervals, planes, points, value, first, second, threads)
    EACH_MASK(CALL)
#undef CALL
}

extern "C" void gnc_spline_backward(const float *x, const float *coefficients, const float *matrix, float start,
                                    float scale, int intervals, int64_t planes, int64_t points, int orders, const float *g_value,
                                    const float *g_first, const float *g_second, float *g_x, float *g_coefficients,
                                    int threads) {
#define CALL(M) \
    backward_all<M>(x, coefficients, matrix, start, scale, intervals, planes, points, g_value, g_first, g_second, g_x, g_coefficients, threads)
    EACH_MASK(CALL)
#undef CALL
}
