// The forward of a decoder over M rows, each a token of some sequence, with paged keys and values.
//
//   rows x (M, C) ─ per layer: norm, qkv, rotary, store │ attention │ out + x │ norm, up, activation │ down + x ─ norm, logits
//
// Why not torch: at one token a step a small model is read from memory in half a millisecond, and the hundred calls that torch
// needs for it take longer. Here a step is one call; between its phases threads meet in under a microsecond.
//
// What a row gives depends on nothing but its own sequence: every sum runs over its terms in one fixed order, however many rows
// are worked on together. So a prompt may be read in any pieces, beside any others, and every bit comes out the same.
//
// Plain C++ with the vector types that GCC and Clang have on every processor. Activations and sums are fp32; weights fp32, bf16 or
// int8 with one scale a row; keys and values fp32 or bf16.
//
// Letters: M rows, C width, H query heads, G key and value heads, D head width, V vocabulary. A panel is 16 outputs of a linear
// layer, [K][16]. Of a block of panels (one head of qkv, else all) fours lie together, [K][4][16], then single ones, so that weights
// are read from front to back. A page is 16 tokens of a sequence: keys [G][D][16], values [G][16][D rounded up to 16].

#include "simd.h"

#include <atomic>
#include <sched.h>
#include <thread>
#include <vector>

extern "C" {

struct Linear {
  const void *weight;  // panels
  const float *scale;  // (outputs rounded up to 16) of int8, else null
  const float *bias;   // the same shape, or null
  int32_t inputs, panels;
};

struct Layer {
  Linear qkv, out, up, down;
  Norm attention, feed_forward;
  const float *q_norm, *k_norm;
};

struct Model {
  int32_t layers, width, heads, kv_heads, head_width, inner, vocab, context, max_rows, threads;
  int32_t weights;     // 0 fp32, 1 bf16, 2 int8
  int32_t cache;       // 0 fp32, 1 bf16
  int32_t layernorm, activation, qk_norm, window;
  float epsilon, attention_scale, softcap;
  const float *cosines, *sines; // (context, D / 2), or null
  const float *slopes;          // (H) of ALiBi, or null
  const Layer *layer;
  Norm norm;
  Linear head;
  void *keys, *values; // [layers][pages][…]
  int64_t pages;
};

struct Step {
  int32_t rows, wanted;
  float *x;               // (M, C), overwritten
  const int32_t *position; // (M)
  const int32_t *table;   // (M) where the row's list of pages begins in `pages`
  const int32_t *pages;
  const int32_t *want;    // (wanted) rows whose logits are asked for
  float *logits;          // (wanted, V)
};
}

namespace {

constexpr size_t AHEAD = 4096; // bytes that are fetched before they are needed

enum Phase { QKV, ATTENTION, OUT, UP, DOWN, PHASES };

struct Engine {
  Model m;
  Step step{};
  int D, Dp, qkv_width, up_width, chunk_panels = 8;
  bool gated;
  std::vector<float> qkv, q, mixed, raw, hidden; // (max_rows, …)
  std::vector<std::vector<float>> normed, scores; // of each thread
  std::vector<std::thread> pool;
  std::atomic<uint64_t> state{IDLE_PHASE << 32};
  std::atomic<int> done{0};
  std::atomic<bool> stop{false};
  static constexpr uint64_t IDLE_PHASE = 0xffff;

  // state: number of the step (16 bits), phase (16), next chunk (32). A chunk is taken by compare-and-swap of the whole, so
  // that a thread which slept through a phase takes nothing of it; a phase ends with its last chunk, so that none waits for a
  // thread which has no chunk: a core that the system gives to somebody else costs one chunk, not a barrier.

  explicit Engine(const Model &model) : m(model) {
    D = m.head_width, Dp = up16(D) * 16;
    gated = m.activation >= SWIGLU;
    qkv_width = (m.heads + 2 * m.kv_heads) * Dp;
    up_width = up16(m.inner) * 16 * (gated ? 2 : 1);
    int rows = m.max_rows;
    qkv.resize((size_t)rows * qkv_width), q.resize((size_t)rows * m.heads * D), mixed.resize((size_t)rows * m.heads * D);
    raw.resize((size_t)rows * up_width), hidden.resize((size_t)rows * m.inner);
    for (int t = 0; t < m.threads; t++) {
      normed.emplace_back((size_t)rows * m.width);
      scores.emplace_back(m.context + 32);
    }
    for (int t = 1; t < m.threads; t++) pool.emplace_back([this, t] { work(t, false); });
  }

  ~Engine() {
    stop = true;
    state.fetch_add(1ull << 48);
    state.notify_all();
    for (auto &thread : pool) thread.join();
  }

  void run(const Step &s) {
    step = s;
    uint64_t number = (state.load() >> 48) + 1;
    state.store(number << 48, std::memory_order_release);
    state.notify_all();
    work(0, true);
  }

  void work(int thread, bool until_idle) {
    int spins = 0;
    for (;;) {
      uint64_t v = state.load(std::memory_order_acquire);
      int phase = (v >> 32) & 0xffff, chunk = (int)(uint32_t)v;
      if (phase == IDLE_PHASE) {
        if (until_idle || stop) return;
        if (++spins > 20000) state.wait(v), spins = 0;
        else if (spins % 1000 == 0) sched_yield();
        else relax();
        continue;
      }
      int total = chunks(phase);
      if (chunk >= total) {
        if (++spins % 2000 == 0) sched_yield();
        else relax();
        continue;
      }
      if (!state.compare_exchange_weak(v, v + 1, std::memory_order_acq_rel)) continue;
      spins = 0;
      dispatch(phase, chunk, thread);
      if (done.fetch_add(1, std::memory_order_acq_rel) + 1 == total) {
        done.store(0, std::memory_order_relaxed);
        uint64_t next = phase == m.layers * PHASES ? IDLE_PHASE : (uint64_t)phase + 1;
        if (next == (uint64_t)m.layers * PHASES && step.wanted == 0) next = IDLE_PHASE;
        state.store((v >> 48 << 48) | next << 32, std::memory_order_release);
      }
    }
  }

  static INLINE void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  int groups(int panels) const { return (panels + chunk_panels - 1) / chunk_panels; }
  int rows_a_chunk() const { return (step.rows * m.heads + 31) / 32; }

  int chunks(int phase) const {
    if (phase == m.layers * PHASES) return groups(m.head.panels);
    const Layer &layer = m.layer[phase / PHASES];
    switch (phase % PHASES) {
    case QKV: return m.heads + 2 * m.kv_heads;
    case ATTENTION: { int a = rows_a_chunk(); return a ? (step.rows * m.heads + a - 1) / a : 1; }
    case OUT: return groups(layer.out.panels);
    case UP: return groups(layer.up.panels);
    default: return groups(layer.down.panels);
    }
  }

  void dispatch(int phase, int chunk, int thread) {
    if (m.weights == 0) run_phase<F32>(phase, chunk, thread);
    else if (m.weights == 1) run_phase<BF16>(phase, chunk, thread);
    else run_phase<I8>(phase, chunk, thread);
  }

  template <class W> void run_phase(int phase, int chunk, int thread) {
    int first = chunk * chunk_panels;
    if (phase == m.layers * PHASES) return logits<W>(first, thread);
    int number = phase / PHASES;
    const Layer &layer = m.layer[number];
    switch (phase % PHASES) {
    case QKV:
      if (m.cache == 0) return project<W, F32>(layer, number, chunk, thread);
      return project<W, BF16>(layer, number, chunk, thread);
    case ATTENTION:
      for (int i = chunk * rows_a_chunk(), end = i + rows_a_chunk(); i < end && i < step.rows * m.heads; i++)
        m.cache == 0 ? attend<F32>(number, i / m.heads, i % m.heads, thread)
                     : attend<BF16>(number, i / m.heads, i % m.heads, thread);
      return;
    case OUT: return add<W>(layer.out, mixed.data(), first);
    case UP: return feed<W>(layer, first, thread);
    default: return add<W>(layer.down, hidden.data(), first);
    }
  }

  // Linear layers ------------------------------------------------------------------------------------------------------

  // y[i][16 r …] for MR rows and NR panels; every sum runs over k from 0 on.
  template <class W, int MR, int NR, class Put>
  static INLINE void tile(const float *x, const Linear &l, int m0, int panel, Put &put) {
    constexpr int TOGETHER = NR < 4 ? 1 : 4, STEP = TOGETHER * 16, GROUPS = NR / TOGETHER;
    const int K = l.inputs;
    const typename W::T *w = (const typename W::T *)l.weight + (size_t)panel * K * 16;
    const float *rows[MR];
    for (int i = 0; i < MR; i++) rows[i] = x + (size_t)(m0 + i) * K;
    v16 acc[MR][NR];
    for (int i = 0; i < MR; i++)
      for (int r = 0; r < NR; r++) acc[i][r] = v16{};
    for (int k = 0; k < K; k++, w += STEP) {
      if (m0 == 0) // the first to read them
        for (int g = 0; g < GROUPS; g++)
          for (size_t at = 0; at < STEP * sizeof(*w); at += 64)
            __builtin_prefetch((const char *)(w + (size_t)g * K * STEP) + at + AHEAD);
      v16 b[NR];
      for (int r = 0; r < NR; r++) b[r] = W::get(w + (size_t)(r / TOGETHER) * K * STEP + r % TOGETHER * 16);
      for (int i = 0; i < MR; i++)
        for (int r = 0; r < NR; r++) acc[i][r] = acc[i][r] + rows[i][k] * b[r];
    }
    for (int i = 0; i < MR; i++)
      for (int r = 0; r < NR; r++) {
        v16 y = acc[i][r];
        if (l.scale) y = y * load(l.scale + (panel + r) * 16);
        if (l.bias) y = y + load(l.bias + (panel + r) * 16);
        put(m0 + i, panel + r, y);
      }
  }

  template <class W, int NR, class Put>
  static INLINE void rows_of(const float *x, const Linear &l, int M, int panel, Put &put) {
    int i = 0;
    for (; i + 6 <= M; i += 6) tile<W, 6, NR>(x, l, i, panel, put);
    switch (M - i) {
    case 5: return tile<W, 5, NR>(x, l, i, panel, put);
    case 4: return tile<W, 4, NR>(x, l, i, panel, put);
    case 3: return tile<W, 3, NR>(x, l, i, panel, put);
    case 2: return tile<W, 2, NR>(x, l, i, panel, put);
    case 1: return tile<W, 1, NR>(x, l, i, panel, put);
    }
  }

  // `first`: the begin of a block of panels, or a multiple of 4 behind it.
  template <class W, class Put>
  static void matmul(const float *x, const Linear &l, int M, int first, int count, Put put) {
    int p = first, end = first + count < l.panels ? first + count : l.panels;
    if (M == 1)
      for (; p + 8 <= end; p += 8) tile<W, 1, 8>(x, l, 0, p, put);
    for (; p + 4 <= end; p += 4) rows_of<W, 4>(x, l, M, p, put);
    for (; p < end; p++) rows_of<W, 1>(x, l, M, p, put);
  }

  // Parts of a block ---------------------------------------------------------------------------------------------------

  void norm_row(const float *x, const Norm &norm, float *y) const { ::norm_row(x, norm, m.width, m.layernorm, m.epsilon, y); }

  const float *norm_rows(const Norm &norm, int thread) {
    float *y = normed[thread].data();
    for (int i = 0; i < step.rows; i++) norm_row(step.x + (size_t)i * m.width, norm, y + (size_t)i * m.width);
    return y;
  }

  // One head's q, k or v of all rows; k and v go to their pages.
  template <class W, class T> void project(const Layer &layer, int number, int head, int thread) {
    const float *x = norm_rows(layer.attention, thread);
    float *out = qkv.data();
    const int wide = qkv_width, panels = Dp / 16;
    matmul<W>(x, layer.qkv, step.rows, head * panels, panels,
              [=](int row, int panel, v16 y) { store(out + (size_t)row * wide + panel * 16, y); });
    typename T::T *keys = (typename T::T *)m.keys + (size_t)number * m.pages * m.kv_heads * D * 16;
    typename T::T *values = (typename T::T *)m.values + (size_t)number * m.pages * m.kv_heads * Dp * 16;
    for (int i = 0; i < step.rows; i++) {
      float *y = out + (size_t)i * wide + head * Dp;
      int position = step.position[i], slot = position % 16;
      size_t page = step.pages[step.table[i] + position / 16];
      if (head >= m.heads + m.kv_heads) {
        int g = head - m.heads - m.kv_heads;
        typename T::T *to = values + ((page * m.kv_heads + g) * 16 + slot) * Dp;
        for (int d = 0; d < D; d++) T::put(to + d, y[d]);
        continue;
      }
      turn(y, position, head < m.heads ? layer.q_norm : layer.k_norm);
      if (head < m.heads) {
        float *to = q.data() + ((size_t)i * m.heads + head) * D;
        for (int d = 0; d < D; d++) to[d] = y[d] * m.attention_scale;
      } else {
        typename T::T *to = keys + (page * m.kv_heads + head - m.heads) * D * 16 + slot;
        for (int d = 0; d < D; d++) T::put(to + d * 16, y[d]);
      }
    }
  }

  // Norm over a head, then rotary.
  void turn(float *y, int position, const float *weight) const {
    if (m.qk_norm) {
      float total = 0;
      for (int d = 0; d < D; d++) total += y[d] * y[d];
      float r = 1.0f / std::sqrt(total / D + m.epsilon);
      for (int d = 0; d < D; d++) y[d] *= weight ? r * weight[d] : r;
    }
    if (!m.cosines) return;
    const float *c = m.cosines + (size_t)position * (D / 2), *s = m.sines + (size_t)position * (D / 2);
    for (int d = 0; d < D / 2; d++) {
      float a = y[d], b = y[d + D / 2];
      y[d] = a * c[d] - b * s[d];
      y[d + D / 2] = b * c[d] + a * s[d];
    }
  }

  template <class T> void attend(int number, int row, int head, int thread) {
    typedef typename T::T E;
    const int G = m.kv_heads, g = head / (m.heads / G), position = step.position[row];
    const int first = m.window && position >= m.window ? position - m.window + 1 : 0;
    const E *keys = (const E *)m.keys + (size_t)number * m.pages * G * D * 16;
    const E *values = (const E *)m.values + (size_t)number * m.pages * G * Dp * 16;
    const int32_t *pages = step.pages + step.table[row];
    const float *from = q.data() + ((size_t)row * m.heads + head) * D;
    float *weights = scores[thread].data();
    const int start = first / 16, end = position / 16 + 1;
    i16 lane;
    for (int i = 0; i < 16; i++) lane[i] = i;
    v16 most = v16{} - INFINITY;
    for (int p = start; p < end; p++) {
      const E *k = keys + ((size_t)pages[p] * G + g) * D * 16;
      v16 a[4] = {};
      int d = 0;
      for (; d + 4 <= D; d += 4)
        for (int j = 0; j < 4; j++) a[j] = a[j] + from[d + j] * T::get(k + (d + j) * 16);
      for (; d < D; d++) a[0] = a[0] + from[d] * T::get(k + d * 16);
      v16 score = (a[0] + a[1]) + (a[2] + a[3]);
      i16 at = lane + p * 16;
      if (m.slopes) score = score - m.slopes[head] * __builtin_convertvector(position - at, v16);
      score = (at > position) | (at < first) ? v16{} - INFINITY : score;
      most = score > most ? score : most;
      store(weights + (p - start) * 16, score);
    }
    float top = most[0];
    for (int i = 1; i < 16; i++) top = most[i] > top ? most[i] : top;
    v16 total{};
    for (int p = 0; p < end - start; p++) {
      v16 s = load(weights + p * 16), e = vexp(s - top);
      e = s == -INFINITY ? v16{} : e;
      total = total + e;
      store(weights + p * 16, e);
    }
    const float inverse = 1.0f / sum(total);
    float *to = mixed.data() + ((size_t)row * m.heads + head) * D;
    for (int d = 0; d < D; d += 16) {
      v16 y{};
      for (int p = start; p < end; p++) {
        const E *v = values + ((size_t)pages[p] * G + g) * 16 * Dp + d;
        const float *w = weights + (p - start) * 16;
        const int last = position - p * 16 < 15 ? position - p * 16 : 15;
        for (int t = 0; t <= last; t++) y = y + w[t] * T::get(v + t * Dp);
      }
      y = y * inverse;
      if (d + 16 <= D) store(to + d, y);
      else
        for (int i = d; i < D; i++) to[i] = y[i - d];
    }
  }

  template <class W> void add(const Linear &l, const float *from, int first) {
    const int C = m.width;
    float *x = step.x;
    matmul<W>(from, l, step.rows, first, chunk_panels, [=](int row, int panel, v16 y) {
      float *to = x + (size_t)row * C + panel * 16;
      if (panel * 16 + 16 <= C) store(to, load(to) + y);
      else
        for (int i = 0; panel * 16 + i < C; i++) to[i] += y[i];
    });
  }

  template <class W> void feed(const Layer &layer, int first, int thread) {
    const float *x = norm_rows(layer.feed_forward, thread);
    float *out = raw.data();
    const int wide = up_width;
    matmul<W>(x, layer.up, step.rows, first, chunk_panels,
              [=](int row, int panel, v16 y) { store(out + (size_t)row * wide + panel * 16, y); });
    int end = first + chunk_panels < layer.up.panels ? first + chunk_panels : layer.up.panels;
    for (int i = 0; i < step.rows; i++)
      for (int p = first; p < end; p += gated ? 2 : 1) { // of a gated one panels alternate: gate, value
        const float *from = out + (size_t)i * wide + p * 16;
        v16 y = activate(m.activation, load(from));
        if (gated) y = y * load(from + 16);
        int column = (gated ? p / 2 : p) * 16;
        float *to = hidden.data() + (size_t)i * m.inner + column;
        if (column + 16 <= m.inner) store(to, y);
        else
          for (int j = 0; column + j < m.inner; j++) to[j] = y[j];
      }
  }

  template <class W> void logits(int first, int thread) {
    float *y = normed[thread].data();
    for (int i = 0; i < step.wanted; i++) norm_row(step.x + (size_t)step.want[i] * m.width, m.norm, y + (size_t)i * m.width);
    const int V = m.vocab;
    const float cap = m.softcap;
    float *out = step.logits;
    matmul<W>(y, m.head, step.wanted, first, chunk_panels, [=](int row, int panel, v16 l) {
      float *to = out + (size_t)row * V + panel * 16;
      if (cap > 0)
        for (int i = 0; i < 16; i++) l[i] = cap * std::tanh(l[i] / cap);
      if (panel * 16 + 16 <= V) store(to, l);
      else
        for (int i = 0; panel * 16 + i < V; i++) to[i] = l[i];
    });
  }
};

} // namespace

extern "C" {
void *open_model(const Model *model) { return new Engine(*model); }
void run_step(void *engine, const Step *step) { ((Engine *)engine)->run(*step); }
void close_model(void *engine) { delete (Engine *)engine; }
}
