// Vectors of FASTVIM_BYTES bytes and the elementary functions on them.
//
// Written in the compilers' vector extension, so one source serves AVX-512, AVX2, SSE2 and NEON.
// The polynomials are minimax fits; relative errors: exp2 and sigmoid below 2e-7 in float and
// 4e-16 in double, softplus and the table of powers below 3e-7 and 6e-16. The scan's decay, exp2 of
// the product delta * (A log2(e)), has the rounding of that product too: e times |delta A| more,
// e = 1.2e-7 in float and 2.2e-16 in double. NaN stays NaN. No fast-math.

namespace FASTVIM_LEVEL {

template <class T>
struct Simd;

template <>
struct Simd<float> {
  typedef float V __attribute__((vector_size(FASTVIM_BYTES)));
  typedef int32_t I __attribute__((vector_size(FASTVIM_BYTES)));
  static constexpr int mantissa_bits = 23;
  static constexpr float lowest_exponent = -127.f, highest_exponent = 128.f;
  static constexpr float round_magic = 12582912.f;  // 1.5 * 2^23
  static constexpr float log2e = 1.44269504f;
  static constexpr float ln2_high = 0.693145751953125f, ln2_low = 1.428606820e-6f;
};

template <>
struct Simd<double> {
  typedef double V __attribute__((vector_size(FASTVIM_BYTES)));
  typedef int64_t I __attribute__((vector_size(FASTVIM_BYTES)));
  static constexpr int mantissa_bits = 52;
  static constexpr double lowest_exponent = -1023., highest_exponent = 1024.;
  static constexpr double round_magic = 6755399441055744.;  // 1.5 * 2^52
  static constexpr double log2e = 1.4426950408889634;
  static constexpr double ln2_high = 0.693147180485539138317, ln2_low = 7.4406171100123967161e-11;
};

template <class T>
using Vec = typename Simd<T>::V;
template <class T>
constexpr int kLanes = FASTVIM_BYTES / sizeof(T);

#define INLINE_MEMBER inline __attribute__((always_inline))
#define INLINE static INLINE_MEMBER

template <class T>
INLINE Vec<T> splat(T value) {
  return value - Vec<T>{};
}

template <class T>
INLINE Vec<T> load(const T* from) {
  Vec<T> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

template <class T>
INLINE void store(T* to, Vec<T> v) {
  __builtin_memcpy(to, &v, sizeof v);
}

// The first `lanes` elements; the others are zero. The loops have a constant length: for a variable
// one the compiler calls memcpy, and a call in a loop makes it give up every vector register.
template <class T>
INLINE Vec<T> load(const T* from, int lanes) {
  if (lanes == kLanes<T>) return load(from);
  Vec<T> v{};
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i)
    if (i < lanes) v[i] = from[i];
  return v;
}

template <class T>
INLINE void store(T* to, Vec<T> v, int lanes) {
  if (lanes == kLanes<T>) return store(to, v);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i)
    if (i < lanes) to[i] = v[i];
}

// Halves are added to halves.
#ifdef FASTVIM_AVX512
template <class T>
INLINE T sum(Vec<T> v) {
  if constexpr (sizeof(T) == 4)
    return _mm512_reduce_add_ps((__m512)v);
  else
    return _mm512_reduce_add_pd((__m512d)v);
}
#else
template <class T>
INLINE T sum(Vec<T> v) {
  T parts[kLanes<T>];
  store(parts, v);
  for (int half = kLanes<T> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
  return parts[0];
}
#endif

// term(0) + ... + term(count - 1), in four sums that do not wait for each other.
template <class T, class Term>
INLINE Vec<T> sum_of(int64_t count, Term term) {
  Vec<T> a{}, b{}, c{}, d{};
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    a += term(i);
    b += term(i + 1);
    c += term(i + 2);
    d += term(i + 3);
  }
  for (; i < count; ++i) a += term(i);
  return (a + b) + (c + d);
}

// The larger and the smaller of two; the second where one is NaN. A comparison and a blend, which the
// compiler makes of the general form, would take the multiplications' ports.
#ifdef FASTVIM_MM
INLINE Vec<float> larger(Vec<float> a, Vec<float> b) { return FASTVIM_MM(max_ps)(a, b); }
INLINE Vec<double> larger(Vec<double> a, Vec<double> b) { return FASTVIM_MM(max_pd)(a, b); }
INLINE Vec<float> smaller(Vec<float> a, Vec<float> b) { return FASTVIM_MM(min_ps)(a, b); }
INLINE Vec<double> smaller(Vec<double> a, Vec<double> b) { return FASTVIM_MM(min_pd)(a, b); }
#else
template <class V>
INLINE V larger(V a, V b) {
  return a > b ? a : b;
}
template <class V>
INLINE V smaller(V a, V b) {
  return a < b ? a : b;
}
#endif

// A NaN in x stays (unlike std::clamp's order of comparisons, which would be free to drop it).
template <class T>
INLINE Vec<T> clamp(Vec<T> x, T low, T high) {
  return smaller(splat<T>(high), larger(splat<T>(low), x));
}

INLINE Vec<float> exp2_polynomial(Vec<float> r) {
  Vec<float> p = 0.001326472726228728f * r + 0.009671512710367482f;
  p = p * r + 0.055507337437411819f;
  p = p * r + 0.24022242084294343f;
  p = p * r + 0.69314697759850219f;
  return p * r + 1.f;
}

INLINE Vec<double> exp2_polynomial(Vec<double> r) {
  Vec<double> p = 4.4549605981865183938e-10 * r + 7.0725859492692236999e-9;
  p = p * r + 1.0178062445845773521e-7;
  p = p * r + 1.3215442587921689653e-6;
  p = p * r + 1.5252733829836118394e-5;
  p = p * r + 1.5403530441736050155e-4;
  p = p * r + 1.333355814641693531e-3;
  p = p * r + 9.6181291076068885273e-3;
  p = p * r + 5.5504108664821594339e-2;
  p = p * r + 2.402265069591009822e-1;
  p = p * r + 6.9314718055994530942e-1;
  return p * r + 1.;
}

#ifdef FASTVIM_AVX512
// x less the nearest integer, and p * 2^n.
INLINE Vec<float> fraction(Vec<float> x) { return (Vec<float>)_mm512_reduce_ps((__m512)x, 0); }
INLINE Vec<double> fraction(Vec<double> x) { return (Vec<double>)_mm512_reduce_pd((__m512d)x, 0); }
INLINE Vec<float> scale(Vec<float> p, Vec<float> n) {
  return (Vec<float>)_mm512_scalef_ps((__m512)p, (__m512)n);
}
INLINE Vec<double> scale(Vec<double> p, Vec<double> n) {
  return (Vec<double>)_mm512_scalef_pd((__m512d)p, (__m512d)n);
}
#endif

// p * 2^n, with n in the low bits of `rounded` = n + round_magic.
template <class T>
INLINE Vec<T> scale_by_power(Vec<T> p, Vec<T> rounded) {
  typedef typename Simd<T>::I I;
  return (Vec<T>)((I)p + ((I)rounded << Simd<T>::mantissa_bits));
}

// 2^x: 0 below the smallest normal number (on AVX-512 the subnormal), infinity above the largest.
template <class T>
INLINE Vec<T> exp2(Vec<T> x) {
#ifdef FASTVIM_AVX512
  // The instructions for it take any x: no clamps, and infinity has the fraction 0.
  const Vec<T> r = fraction(x);
  return scale(exp2_polynomial(r), x - r);
#else
  x = clamp<T>(x, Simd<T>::lowest_exponent, Simd<T>::highest_exponent);
  Vec<T> rounded = x + Simd<T>::round_magic;
  Vec<T> r = x - (rounded - Simd<T>::round_magic);
  return scale_by_power<T>(exp2_polynomial(r), rounded);
#endif
}

// The scan's decay, 2^(x y), for any x and y.
template <class T>
struct AnyDecay {
  INLINE_MEMBER Vec<T> operator()(Vec<T> x, Vec<T> y) const { return exp2<T>(x * y); }
};

// The same for |x y| below kNearLimit, in fewer instructions and, with fused multiplications, without
// the product's rounding.
template <class T>
constexpr T kNearLimit = Simd<T>::highest_exponent - 8;

template <class T>
struct PolynomialDecay {
  INLINE_MEMBER Vec<T> operator()(Vec<T> x, Vec<T> y) const {
    const Vec<T> rounded = x * y + Simd<T>::round_magic;
    const Vec<T> r = x * y - (rounded - Simd<T>::round_magic);
    return scale_by_power<T>(exp2_polynomial(r), rounded);
  }
};

#ifdef FASTVIM_AVX512
// 2^(i/32) from a table of two registers times (r + a)^2 + b, |r| <= 1/64, whose error is 5.4e-8:
// fewer multiplications than the polynomial above, and they are what a scan waits for. The table
// carries the square's factor, and less the bits of i that adding n brings into the mantissa.
struct TableDecay {
  Vec<float> low, high;

  INLINE_MEMBER TableDecay() {
    alignas(64) static const uint32_t entries[32] = {
        0x3e75fd7bu, 0x3e77606cu, 0x3e7870c7u, 0x3e7740c6u, 0x3e762089u, 0x3e751068u, 0x3e7410beu, 0x3e7321e7u,
        0x3e724442u, 0x3e71782eu, 0x3e70be0eu, 0x3e701647u, 0x3e6f8140u, 0x3e6eff62u, 0x3e6e9118u, 0x3e6e36d0u,
        0x3e6df0fau, 0x3e6dc009u, 0x3e6da471u, 0x3e6d9eabu, 0x3e6daf31u, 0x3e6dd680u, 0x3e6e1518u, 0x3e6e6b7au,
        0x3e6eda2du, 0x3e6f61b8u, 0x3e7002a8u, 0x3e70bd8au, 0x3e7192f0u, 0x3e72836eu, 0x3e738f9du, 0x3e74b817u,
    };
    __builtin_memcpy(&low, entries, sizeof low);
    __builtin_memcpy(&high, entries + 16, sizeof high);
  }
  INLINE_MEMBER Vec<float> operator()(Vec<float> x, Vec<float> y) const {
    constexpr float magic = 393216.f;  // 1.5 * 2^18: sums are rounded to multiples of 1/32
    const Vec<float> rounded = x * y + magic;
    const Vec<float> r = x * y - (rounded - magic);
    const __m512i n = (__m512i)rounded;
    const __m512i power = (__m512i)_mm512_permutex2var_ps((__m512)low, n, (__m512)high);
    const Vec<float> scale = (Vec<float>)_mm512_add_epi32(power, _mm512_slli_epi32(n, 18));
    const Vec<float> s = r + 1.4427268f;
    return scale * (s * s + 2.0813076f);
  }
};

template <class T>
struct Near {
  typedef AnyDecay<T> Decay;
};
template <>
struct Near<float> {
  typedef TableDecay Decay;
};
#else
template <class T>
struct Near {
  typedef PolynomialDecay<T> Decay;
};
#endif
template <class T>
using NearDecay = typename Near<T>::Decay;

// exp2_polynomial in powers of x ln(2). Calling it with r log2(e) instead, or one evaluator with tables
// of coefficients, made FastVim-T's forward at 1024 4 to 7 % slower (AVX2, g++ 12).
INLINE Vec<float> exp_polynomial(Vec<float> r) {
  Vec<float> p = 0.0082903147560805687f * r + 0.041897929603138135f;
  p = p * r + 0.16667636196270843f;
  p = p * r + 0.49999149528457745f;
  p = p * r + 0.99999970718853252f;
  return p * r + 1.f;
}

INLINE Vec<double> exp_polynomial(Vec<double> r) {
  Vec<double> p = 2.5105206373957011e-8 * r + 2.7626357241447223e-7;
  p = p * r + 2.7557255425746434e-6;
  p = p * r + 2.4801504346997687e-5;
  p = p * r + 1.9841269874800492e-4;
  p = p * r + 1.3888888932488598e-3;
  p = p * r + 8.3333333333261409e-3;
  p = p * r + 4.1666666666573143e-2;
  p = p * r + 0.16666666666666671;
  p = p * r + 0.50000000000000056;
  p = p * r + 1.;
  return p * r + 1.;
}

// e^x for |x| up to 87 in float and 708 in double, held there outside. ln(2) comes in two parts, of
// which the first times n is exact, so that large |x| keeps its relative accuracy: with fused
// multiplications and without, which processors before AVX2 and compilers that do not fuse lack.
template <class T>
INLINE Vec<T> exp(Vec<T> x) {
  constexpr T ln2 = T(0.69314718055994531);
  // Inside the range of normal numbers; callers need neither 0 nor infinity.
  x = clamp<T>(x, ln2 * (Simd<T>::lowest_exponent + 2), ln2 * (Simd<T>::highest_exponent - 1));
  Vec<T> rounded = x * Simd<T>::log2e + Simd<T>::round_magic;
  Vec<T> n = rounded - Simd<T>::round_magic;
  Vec<T> r = x - n * Simd<T>::ln2_high - n * Simd<T>::ln2_low;
  return scale_by_power<T>(exp_polynomial(r), rounded);
}

template <class T>
INLINE Vec<T> sigmoid(Vec<T> x) {
  return T(1) / (T(1) + exp<T>(-x));
}

template <class T>
INLINE Vec<T> silu(Vec<T> x) {
  return x / (T(1) + exp<T>(-x));
}

INLINE Vec<float> atanh_series(Vec<float> s2) {
  Vec<float> p = 0.28157778363109080655f * s2 + 0.27965157745197268888f;
  p = p * s2 + 0.40024595230703747912f;
  p = p * s2 + 0.66666321641377773156f;
  return p * s2 + 2.0000000076817588809f;
}

INLINE Vec<double> atanh_series(Vec<double> s2) {
  Vec<double> p = 0.17044163562781398129 * s2 + 0.083245065118608205757;
  p = p * s2 + 0.12110168728069217655;
  p = p * s2 + 0.13300374032674624337;
  p = p * s2 + 0.15386614042304007762;
  p = p * s2 + 0.1818174083250480451;
  p = p * s2 + 0.22222224080747673173;
  p = p * s2 + 0.28571428545454114534;
  p = p * s2 + 0.40000000000185747468;
  p = p * s2 + 0.66666666666666149594;
  return p * s2 + 2.0000000000000000024;
}

// log(1 + e^x) as max(x, 0) + log1p(e^-|x|), with log1p(t) = 2 atanh(t / (2 + t)).
template <class T>
INLINE Vec<T> softplus(Vec<T> x) {
  Vec<T> positive = x < T(0) ? Vec<T>{} : x;
  Vec<T> t = exp<T>(x < T(0) ? x : -x);
  Vec<T> s = t / (T(2) + t);
  return positive + s * atanh_series(s * s);
}

}  // namespace FASTVIM_LEVEL
