// Quartic splines on CPU, float32: the compiled form of gnclib.spline.evaluate_polynomials and its backward pass.
//
// x (planes, points); table (planes, intervals, 5): phi = sum_p c_p f^p with f in [0, 1] local to the interval.
// Outside of the range phi is continued linearly. `orders` is a bit mask: 1 phi, 2 phi', 4 phi''.
// Each plane has its own table, so that planes are independent: no two threads ever write to the same place, and
// results do not depend on the number of threads.
#include <algorithm>
#include <cstdint>
#include <vector>

typedef float vec4 __attribute__((vector_size(16)));

namespace {

// One interval's coefficients, padded: c1..c4 lie together because phi' needs just those.
struct alignas(32) Piece {
    vec4 c;  // c1, c2, c3, c4
    float c0;
    float pad[3];
};

inline void locate(float x, float low, float scale, int intervals, int &k, float &f, float &beyond) {
    float v = (x - low) * scale;
    float inside = std::min(std::max(v, 0.0f), static_cast<float>(intervals));
    beyond = v - inside;  // 0 in the range
    k = std::min(static_cast<int>(inside), intervals - 1);
    f = inside - static_cast<float>(k);
}

template <int ORDERS>
void forward_plane(const float *x, const Piece *table, float low, float scale, int intervals, int64_t points,
                   float *value, float *first, float *second) {
    for (int64_t i = 0; i < points; ++i) {
        int k;
        float f, beyond;
        locate(x[i], low, scale, intervals, k, f, beyond);
        const Piece &p = table[k];
        const vec4 c = p.c;
        const float slope = c[0] + f * (2 * c[1] + f * (3 * c[2] + f * 4 * c[3]));
        if (ORDERS & 1) value[i] = p.c0 + f * (c[0] + f * (c[1] + f * (c[2] + f * c[3]))) + slope * beyond;
        if (ORDERS & 2) first[i] = slope * scale;
        if (ORDERS & 4) second[i] = beyond == 0 ? (2 * c[1] + f * (6 * c[2] + f * 12 * c[3])) * scale * scale : 0.0f;
    }
}

template <int ORDERS>
void backward_plane(const float *x, const Piece *table, float low, float scale, int intervals, int64_t points,
                    const float *g_value, const float *g_first, const float *g_second, float *g_x, Piece *g_table) {
    for (int64_t i = 0; i < points; ++i) {
        int k;
        float f, beyond;
        locate(x[i], low, scale, intervals, k, f, beyond);
        const vec4 c = table[k].c;
        const float inside = beyond == 0 ? 1.0f : 0.0f;
        const float f2 = f * f, f3 = f2 * f;
        float gx = 0;
        vec4 g = {0, 0, 0, 0};
        if (ORDERS & 1) {
            const float s = g_value[i];
            gx += s * (c[0] + f * (2 * c[1] + f * (3 * c[2] + f * 4 * c[3])));
            g += s * (vec4{f, f2, f3, f2 * f2} + beyond * vec4{1, 2 * f, 3 * f2, 4 * f3});
            g_table[k].c0 += s;
        }
        if (ORDERS & 2) {
            const float s = g_first[i] * scale;
            gx += inside * s * (2 * c[1] + f * (6 * c[2] + f * 12 * c[3]));
            g += s * vec4{1, 2 * f, 3 * f2, 4 * f3};
        }
        if (ORDERS & 4) {
            const float s = inside * g_second[i] * scale * scale;
            gx += s * (6 * c[2] + 24 * f * c[3]);
            g += s * vec4{0, 2, 6 * f, 12 * f2};
        }
        g_x[i] = gx * scale;
        g_table[k].c += g;
    }
}

void pack(const float *table, int intervals, Piece *out) {
    for (int k = 0; k < intervals; ++k, table += 5) {
        out[k].c0 = table[0];
        out[k].c = vec4{table[1], table[2], table[3], table[4]};
    }
}

inline const float *at(const float *base, int64_t offset) { return base ? base + offset : nullptr; }
inline float *at(float *base, int64_t offset) { return base ? base + offset : nullptr; }

template <int ORDERS>
void forward_all(const float *x, const float *table, float low, float scale, int intervals, int64_t planes,
                 int64_t points, float *value, float *first, float *second, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<Piece> packed(intervals);
#pragma omp for schedule(static)
        for (int64_t s = 0; s < planes; ++s) {
            const int64_t o = s * points;
            pack(table + s * intervals * 5, intervals, packed.data());
            forward_plane<ORDERS>(x + o, packed.data(), low, scale, intervals, points, at(value, o), at(first, o),
                                  at(second, o));
        }
    }
}

template <int ORDERS>
void backward_all(const float *x, const float *table, float low, float scale, int intervals, int64_t planes,
                  int64_t points, const float *g_value, const float *g_first, const float *g_second, float *g_x,
                  float *g_table, int threads) {
    constexpr int64_t lanes = 4;  // independent sums: neighbouring points often share an interval
#pragma omp parallel num_threads(threads)
    {
        std::vector<Piece> packed(intervals), sums(lanes * intervals);
#pragma omp for schedule(static)
        for (int64_t s = 0; s < planes; ++s) {
            pack(table + s * intervals * 5, intervals, packed.data());
            std::fill(sums.begin(), sums.end(), Piece{{0, 0, 0, 0}, 0, {0, 0, 0}});
            for (int64_t l = 0; l < lanes; ++l) {
                const int64_t from = points * l / lanes, to = points * (l + 1) / lanes, o = s * points + from;
                backward_plane<ORDERS>(x + o, packed.data(), low, scale, intervals, to - from, at(g_value, o),
                                       at(g_first, o), at(g_second, o), g_x + o, sums.data() + l * intervals);
            }
            float *g = g_table + s * intervals * 5;
            for (int k = 0; k < intervals; ++k, g += 5) {
                vec4 c = {0, 0, 0, 0};
                float c0 = 0;
                for (int64_t l = 0; l < lanes; ++l) {
                    c += sums[l * intervals + k].c;
                    c0 += sums[l * intervals + k].c0;
                }
                g[0] = c0;
                for (int p = 0; p < 4; ++p) g[p + 1] = c[p];
            }
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

extern "C" void gnc_spline_forward(const float *x, const float *table, float low, float scale, int intervals,
                                   int64_t planes, int64_t points, int orders, float *value, float *first,
                                   float *second, int threads) {
#define CALL(M) forward_all<M>(x, table, low, scale, intervals, planes, points, value, first, second, threads)
    EACH_MASK(CALL)
#undef CALL
}

extern "C" void gnc_spline_backward(const float *x, const float *table, float low, float scale, int intervals,
                                    int64_t planes, int64_t points, int orders, const float *g_value,
                                    const float *g_first, const float *g_second, float *g_x, float *g_table,
                                    int threads) {
#define CALL(M) \
    backward_all<M>(x, table, low, scale, intervals, planes, points, g_value, g_first, g_second, g_x, g_table, threads)
    EACH_MASK(CALL)
#undef CALL
}
