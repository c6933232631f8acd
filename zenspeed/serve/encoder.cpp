// The blocks of an encoder over texts that lie one behind the other, without padding: (M, C) in, (M, C) out.
//
//   x ─ per layer: [norm] qkv │ per text and head: softmax(q kᵀ) v │ out + x [norm] │ [norm] up, activation │ down + x [norm]
//
// One call, one thread: batches are answered side by side, a core each, and none waits for another inside a layer. Why not torch:
// beside its products, some three hundred calls a batch, each over all of its activations, took twice the time of the products
// in bf16; and its fp32 products reach two fifths of what this processor can do.
//
// Every sum runs over its terms in one fixed order, so that no bit of a text depends on what else is in the batch.
//
// Products are fp32, or bf16 with sums in fp32; all else is fp32. Needs AVX-512, and for bf16 its instructions for it.
//
// Letters: M tokens, C width, H query heads, G key and value heads, D head width, T tokens of a text. A panel is 16 outputs of a
// linear layer: fp32 [K][16], bf16 [K / 2][16][2]. C, D and the inner width are multiples of 16.

#include "simd.h"

#include <vector>

extern "C" {

struct Linear {
  const void *weight; // panels
  const float *bias;  // or null
  int32_t inputs, panels;
};

struct Layer {
  Linear qkv, out, up, down;
  Norm attention, feed_forward;
};

struct Encoder {
  int32_t layers, width, heads, kv_heads, head_width, inner;
  int32_t bf16, layernorm, activation, pre;
  float epsilon, attention_scale;
  const Layer *layer;
};
}

namespace {

#define ROWS 12 // of a tile, by two panels: 24 sums in registers
#define BLOCK 360 // rows, whose inputs stay in the second cache while all panels go by
#define QUERIES 48 // whose scores are held at a time

INLINE v16 fma(v16 a, v16 b, v16 c) { return (v16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }

struct Full { // operands of a product
  typedef float T;
  static constexpr int TERMS = 1; // of a sum at a time
  static INLINE v16 add(v16 sum, const T *x, const T *w) { return fma(v16{} + *x, load(w), sum); }
  static INLINE void put(T *p, v16 x) { store(p, x); }
};

#ifdef __AVX512BF16__
struct Half {
  typedef uint16_t T;
  static constexpr int TERMS = 2;
  static INLINE v16 add(v16 sum, const T *x, const T *w) {
    int32_t pair;
    memcpy(&pair, x, 4);
    return (v16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)_mm512_loadu_si512(w));
  }
  static INLINE void put(T *p, v16 x) { _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh((__m512)x)); }
};
#endif

// put(row, panel, sums) for MR rows of x, `stride` apart, and NR panels of K inputs.
template <class W, int MR, int NR, class Put>
INLINE void tile(const typename W::T *x, size_t stride, const typename W::T *w, int K, int row, int panel, Put &put) {
  x += row * stride;
  w += (size_t)panel * K * 16;
  v16 sums[MR][NR];
  for (int i = 0; i < MR; i++)
    for (int r = 0; r < NR; r++) sums[i][r] = v16{};
  for (int k = 0; k < K; k += W::TERMS)
    for (int i = 0; i < MR; i++)
      for (int r = 0; r < NR; r++) sums[i][r] = W::add(sums[i][r], x + i * stride + k, w + ((size_t)r * K + k) * 16);
  for (int i = 0; i < MR; i++)
    for (int r = 0; r < NR; r++) put(row + i, panel + r, sums[i][r]);
}

template <class W, int MR, int NR, class Put>
INLINE void last_rows(const typename W::T *x, size_t stride, const typename W::T *w, int K, int row, int left, int panel, Put &put) {
  if constexpr (MR > 0) {
    if (left == MR) return tile<W, MR, NR>(x, stride, w, K, row, panel, put);
    last_rows<W, MR - 1, NR>(x, stride, w, K, row, left, panel, put);
  }
}

// `next`: of the panels that come after these, fetched meanwhile, a part with every tile.
template <class W, int NR, class Put>
INLINE void rows_of(const typename W::T *x, size_t stride, const typename W::T *w, int K, int row, int end, int panel, Put &put) {
  const size_t bytes = (size_t)NR * K * 16 * sizeof(*w), part = bytes * ROWS / (end - row) / 64 * 64 + 64;
  const char *next = (const char *)(w + (size_t)(panel + NR) * K * 16), *last = next + bytes;
  for (; row + ROWS <= end; row += ROWS) {
    for (const char *p = next; p < next + part && p < last; p += 64) _mm_prefetch(p, _MM_HINT_T1);
    next += part;
    tile<W, ROWS, NR>(x, stride, w, K, row, panel, put);
  }
  last_rows<W, ROWS - 1, NR>(x, stride, w, K, row, end - row, panel, put);
}

template <class W, class Put>
void product(const typename W::T *x, size_t stride, int rows, const typename W::T *w, int K, int panels, Put put) {
  const int blocks = (rows + BLOCK - 1) / BLOCK, size = ((rows + blocks - 1) / blocks + ROWS - 1) / ROWS * ROWS;
  for (int begin = 0; begin < rows; begin += size) {
    int end = begin + size < rows ? begin + size : rows, p = 0;
    for (; p + 2 <= panels; p += 2) rows_of<W, 2>(x, stride, w, K, begin, end, p, put);
    if (p < panels) rows_of<W, 1>(x, stride, w, K, begin, end, p, put);
  }
}

template <class W> struct Run {
  typedef typename W::T T;
  const Encoder &m;
  float *x; // (M, C)
  const int M, C, D, wide;
  // (M, C), (M, wide), (M, H D), (M, inner): what goes into products, and what comes out of the first
  std::vector<T> &input, &mixed, &hidden;
  std::vector<float> &qkv, &keys, &values, &scores, &row;

  template <class Put> void linear(const T *from, const Linear &l, Put put) {
    const float *bias = l.bias;
    product<W>(from, l.inputs, M, (const T *)l.weight, l.inputs, l.panels,
               [=](int i, int p, v16 y) { put(i, p * 16, bias ? y + load(bias + p * 16) : y); });
  }

  // The rows as a product reads them; those of `norm` if there is one, else x.
  const T *inputs(const Norm *norm) {
    for (int i = 0; i < M; i++) {
      const float *from = x + (size_t)i * C;
      if (norm) norm_row(from, *norm, C, m.layernorm, m.epsilon, row.data()), from = row.data();
      for (int c = 0; c < C; c += 16) W::put(input.data() + (size_t)i * C + c, load(from + c));
    }
    return input.data();
  }

  void add(const T *from, const Linear &l, const Norm &norm) {
    float *to = x;
    const int width = C;
    linear(from, l, [=](int i, int c, v16 y) { float *p = to + (size_t)i * width + c; store(p, load(p) + y); });
    if (m.pre) return;
    for (int i = 0; i < M; i++) norm_row(x + (size_t)i * C, norm, C, m.layernorm, m.epsilon, x + (size_t)i * C);
  }

  void layer(const Layer &l, const int32_t *starts, int texts) {
    float *to = qkv.data();
    const int width = wide, queries = m.heads * D, inner = m.inner, kind = m.activation;
    const float scale = m.attention_scale;
    linear(inputs(m.pre ? &l.attention : nullptr), l.qkv,
           [=](int i, int c, v16 y) { store(to + (size_t)i * width + c, c < queries ? y * scale : y); });
    for (int t = 0; t < texts; t++)
      for (int h = 0; h < m.heads; h++) attend(starts[t], starts[t + 1] - starts[t], h);
    add(mixed.data(), l.out, l.attention);
    T *up = hidden.data();
    linear(inputs(m.pre ? &l.feed_forward : nullptr), l.up,
           [=](int i, int c, v16 y) { W::put(up + (size_t)i * inner + c, activate(kind, y)); });
    add(hidden.data(), l.down, l.feed_forward);
  }

  // One head of the T tokens of a text, all of which see each other.
  void attend(int first, int count, int head) {
    const int g = head / (m.heads / m.kv_heads), panels = up16(count), padded = panels * 16, queries = m.heads * D;
    const float *base = qkv.data() + (size_t)first * wide, *q = base + head * D;
    if (head % (m.heads / m.kv_heads) == 0) put_in_panels(base + queries + g * D, base + queries + (m.kv_heads + g) * D, count);
    float *s = scores.data();
    T *out = mixed.data() + (size_t)first * queries + head * D;
    for (int begin = 0; begin < count; begin += QUERIES) {
      const int rows = begin + QUERIES < count ? QUERIES : count - begin;
      product<Full>(q + (size_t)begin * wide, wide, rows, keys.data(), D, panels,
                    [=](int i, int p, v16 y) { store(s + (size_t)i * padded + p * 16, y); });
      float inverse[QUERIES];
      for (int i = 0; i < rows; i++) inverse[i] = softmax(s + (size_t)i * padded, count);
      product<Full>(s, padded, rows, values.data(), count, D / 16, [&](int i, int p, v16 y) {
        W::put(out + (size_t)(begin + i) * queries + p * 16, y * inverse[i]);
      });
    }
  }

  // Keys as [panels][D][16], nothing behind the last; values as [D / 16][T][16].
  void put_in_panels(const float *k, const float *v, int count) {
    for (int p = 0; p < up16(count); p++)
      for (int j = 0; j < 16; j++) {
        const int t = p * 16 + j;
        float *to = keys.data() + (size_t)p * D * 16 + j;
        for (int d = 0; d < D; d++) to[d * 16] = t < count ? k[(size_t)t * wide + d] : 0.0f;
      }
    for (int p = 0; p < D / 16; p++)
      for (int t = 0; t < count; t++) store(values.data() + ((size_t)p * count + t) * 16, load(v + (size_t)t * wide + p * 16));
  }

  // In place, without the division; what to multiply by in its stead.
  static float softmax(float *s, int count) {
    v16 most = v16{} - INFINITY;
    for (int i = count; i < up16(count) * 16; i++) s[i] = -INFINITY;
    for (int i = 0; i < count; i += 16) {
      v16 a = load(s + i);
      most = a > most ? a : most;
    }
    const float top = _mm512_reduce_max_ps((__m512)most);
    v16 total{};
    for (int i = 0; i < count; i += 16) {
      v16 a = load(s + i), e = vexp(a - top);
      e = a == -INFINITY ? v16{} : e;
      total = total + e;
      store(s + i, e);
    }
    return 1.0f / _mm512_reduce_add_ps((__m512)total);
  }
};

template <class W> void encode_as(const Encoder &m, float *x, const int32_t *starts, int texts) {
  typedef typename W::T T;
  static thread_local std::vector<T> input, mixed, hidden; // kept: memory that is new costs as much as a layer
  static thread_local std::vector<float> qkv, keys, values, scores, row;
  const int M = starts[texts], D = m.head_width, wide = (m.heads + 2 * m.kv_heads) * D;
  size_t longest = 0;
  for (int t = 0; t < texts; t++) longest = std::max<size_t>(longest, up16(starts[t + 1] - starts[t]) * 16);
  auto room = [](auto &buffer, size_t size) { if (buffer.size() < size) buffer.resize(size); };
  room(input, (size_t)M * m.width), room(mixed, (size_t)M * m.heads * D), room(hidden, (size_t)M * m.inner);
  room(qkv, (size_t)M * wide), room(keys, longest * D), room(values, longest * D);
  room(scores, longest * QUERIES), room(row, m.width);
  Run<W> run{m, x, M, m.width, D, wide, input, mixed, hidden, qkv, keys, values, scores, row};
  for (int l = 0; l < m.layers; l++) run.layer(m.layer[l], starts, texts);
}

} // namespace

extern "C" {
// x: (M, C), overwritten; text t is its rows from starts[t] to starts[t + 1].
void encode(const Encoder *m, float *x, const int32_t *starts, int32_t texts) {
#ifdef __AVX512BF16__
  if (m->bf16) return encode_as<Half>(*m, x, starts, texts);
#endif
  encode_as<Full>(*m, x, starts, texts);
}
}
