// What the kernels have in common: vectors of 16 floats, weights as floats, activations, norms.
//
// The vector types are those that GCC and Clang have on every processor.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h> // GCC takes __builtin_convertvector apart, lane by lane
#endif

extern "C" {
struct Norm {
  const float *weight, *bias;
};
}

namespace {

typedef float v16 __attribute__((vector_size(64)));
typedef float v16u __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t i16 __attribute__((vector_size(64)));
typedef uint32_t u16 __attribute__((vector_size(64)));
typedef uint16_t h16 __attribute__((vector_size(32), aligned(2), may_alias));
typedef int8_t b16 __attribute__((vector_size(16), aligned(1), may_alias));

#define INLINE inline __attribute__((always_inline))

INLINE v16 load(const float *p) { return *(const v16u *)p; }
INLINE void store(float *p, v16 x) { *(v16u *)p = x; }

struct F32 {
  typedef float T;
  static INLINE v16 get(const T *p) { return load(p); }
  static INLINE void put(T *p, float x) { *p = x; }
};
struct BF16 {
  typedef uint16_t T;
  static INLINE v16 get(const T *p) {
#ifdef __AVX512F__
    return (v16)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
#else
    return (v16)(__builtin_convertvector(*(const h16 *)p, u16) << 16);
#endif
  }
  static INLINE void put(T *p, float x) { // to the nearest, ties to even
    uint32_t bits;
    memcpy(&bits, &x, 4);
    *p = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  }
};
struct I8 {
  typedef int8_t T;
  static INLINE v16 get(const T *p) {
#ifdef __AVX512F__
    return (v16)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#else
    return __builtin_convertvector(*(const b16 *)p, v16);
#endif
  }
};

INLINE v16 vexp(v16 x) { // Cephes' expf: 2^n times a polynomial of the rest
#ifdef __AVX512F__
  v16 n = (v16)_mm512_roundscale_ps((__m512)(x * 1.44269504f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  x = x < -87.0f ? v16{} - 87.0f : x;
  x = x > 88.0f ? v16{} + 88.0f : x;
  v16 n = x * 1.44269504f;
  i16 k = __builtin_convertvector(n < 0.0f ? n - 0.5f : n + 0.5f, i16);
  n = __builtin_convertvector(k, v16);
#endif
  v16 r = x - n * 0.693359375f + n * 2.12194440e-4f;
  v16 p = v16{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
#ifdef __AVX512F__
  return (v16)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  return p * (v16)((k + 127) << 23);
#endif
}

INLINE float sum(v16 x) {
  float s[16];
  memcpy(s, &x, 64);
  for (int step = 8; step; step /= 2)
    for (int i = 0; i < step; i++) s[i] += s[i + step];
  return s[0];
}

int up16(int n) { return (n + 15) / 16; }

enum Activation { GELU, GELU_TANH, RELU, RELU_SQUARED, SWIGLU, GEGLU };

// x Φ(x); erf by Abramowitz and Stegun 7.1.26, whose error is below 1.5e-7.
INLINE v16 gelu(v16 x) {
  v16 z = x * 0.70710678f, a = z < 0.0f ? -z : z, t = 1.0f / (1.0f + 0.3275911f * a);
  v16 p = v16{} + 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  v16 rest = p * t * vexp(-a * a); // 1 − erf |z|
  return 0.5f * x * (z < 0.0f ? rest : 2.0f - rest);
}

INLINE v16 activate(int kind, v16 x) {
  switch (kind) {
  case RELU: return x > 0.0f ? x : v16{};
  case RELU_SQUARED: return x > 0.0f ? x * x : v16{};
  case SWIGLU: return x / (1.0f + vexp(-x));
  case GELU: return gelu(x);
  default: // tanh's GELU: x · sigmoid(2u)
    return x / (1.0f + vexp(-(1.59576912f * x + 0.07135482f * x * x * x)));
  }
}

void norm_row(const float *x, const Norm &norm, int C, bool layernorm, float epsilon, float *y) {
  float mean = 0;
  if (layernorm) {
    v16 s{};
    int i = 0;
    for (; i + 16 <= C; i += 16) s = s + load(x + i);
    mean = sum(s);
    for (; i < C; i++) mean += x[i];
    mean /= C;
  }
  v16 s{};
  int i = 0;
  for (; i + 16 <= C; i += 16) {
    v16 d = load(x + i) - mean;
    s = s + d * d;
  }
  float total = sum(s);
  for (; i < C; i++) total += (x[i] - mean) * (x[i] - mean);
  float r = 1.0f / std::sqrt(total / C + epsilon);
  for (i = 0; i < C; i++) y[i] = (x[i] - mean) * r * norm.weight[i];
  if (norm.bias)
    for (i = 0; i < C; i++) y[i] += norm.bias[i];
}

} // namespace
