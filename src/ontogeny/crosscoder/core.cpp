// The pairs of a training step on a CPU, block by block. native.py describes its use; losses.py has
// the equations and the same computation in PyTorch.
//
//   B tokens   F features   S blocks of the decoder, D wide (the sites, or one for a subspace)
//   G gates per feature (1 or S)   I columns of x   P candidates: pairs (token, feature) with at
//   least one open gate, kept by token (for decoding) and by feature (for all gradients)
//
// Sums have the same order for any number of threads: only one thread at a time works on a token or
// a feature, and sums over all tokens are computed by one thread.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

using at::Tensor;
using std::optional;
using std::vector;

namespace {

// ---- Sixteen floats at a time; the compiler maps them to the processor's vector instructions.

constexpr int L = 16, AHEAD = 4;
typedef float Lane __attribute__((vector_size(4 * L)));
typedef float HalfOfLane __attribute__((vector_size(2 * L)));
typedef float QuarterOfLane __attribute__((vector_size(L)));
typedef int32_t IntLane __attribute__((vector_size(4 * L)));
typedef uint32_t BitLane __attribute__((vector_size(4 * L)));
typedef uint16_t HalfLane __attribute__((vector_size(2 * L)));

inline Lane load(const float* p) {
  Lane x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
inline void store(float* p, Lane x) { std::memcpy(p, &x, sizeof x); }
inline Lane splat(float x) { return x - Lane{}; }
#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
inline float sum(Lane x) {
  HalfOfLane half = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
                    __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
  QuarterOfLane s = __builtin_shufflevector(half, half, 0, 1, 2, 3) +
                    __builtin_shufflevector(half, half, 4, 5, 6, 7);
  return (s[0] + s[2]) + (s[1] + s[3]);
}
#else
inline float sum(Lane x) {
  float half[8], s[4];
  for (int i = 0; i < 8; i++) half[i] = x[i] + x[i + 8];
  for (int i = 0; i < 4; i++) s[i] = half[i] + half[i + 4];
  return (s[0] + s[2]) + (s[1] + s[3]);
}
#endif

// tanh of z >= 0, to about 1e-7.
inline Lane tanh_of(Lane z) {
  Lane x = z * 2.f;
  x = x < 40.f ? x : splat(40.f);  // NaN becomes 40 here; the loss is NaN in any case
  Lane n = __builtin_convertvector(__builtin_convertvector(x * 1.44269504f + .5f, IntLane), Lane);
  Lane y = x - n * 0.693359375f + n * 2.12194440e-4f;
  Lane p = y * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * y + 8.3334519073e-3f;
  p = p * y + 4.1665795894e-2f;
  p = p * y + 1.6666665459e-1f;
  p = p * y + 5.0000001201e-1f;
  p = p * y * y + y + 1.f;
  IntLane power = (__builtin_convertvector(n, IntLane) + 127) << 23;
  Lane scale;
  std::memcpy(&scale, &power, sizeof scale);
  return 1.f - 2.f / (p * scale + 1.f);
}

// ---- The two products of gathered rows.

template <int V>
void add_rows(float* out, const float* table, int64_t stride, int n, const int* rows, const float* by) {
  Lane acc[V];
  for (int v = 0; v < V; v++) acc[v] = load(out + L * v);
  for (int k = 0; k < n; k++) {
    const float* row = table + rows[k] * stride;
    Lane weight = splat(by[k]);
    for (int v = 0; v < V; v++) acc[v] += weight * load(row + L * v);
  }
  for (int v = 0; v < V; v++) store(out + L * v, acc[v]);
}

template <int V>
void add_dots(float* out, const float* w, const float* table, int64_t stride, int n, const int* rows) {
  Lane own[V];
  for (int v = 0; v < V; v++) own[v] = load(w + L * v);
  for (int k = 0; k < n; k++) {
    const float* row = table + rows[k] * stride;
    Lane acc = own[0] * load(row);
    for (int v = 1; v < V; v++) acc += own[v] * load(row + L * v);
    out[k] += sum(acc);
  }
}

// Calls f<V>(column) for pieces of V·L columns, then rest(column) for each that is left.
template <class F, class R>
inline void in_pieces(int64_t D, F f, R rest) {
  int64_t at = 0;
  for (; at + 8 * L <= D; at += 8 * L) f(std::integral_constant<int, 8>{}, at);
  if (at + 4 * L <= D) f(std::integral_constant<int, 4>{}, at), at += 4 * L;
  if (at + 2 * L <= D) f(std::integral_constant<int, 2>{}, at), at += 2 * L;
  if (at + L <= D) f(std::integral_constant<int, 1>{}, at), at += L;
  for (; at < D; at++) rest(at);
}

// out (D,) += Σ_k by_k · table[rows_k]
void add_rows(float* out, int64_t D, const float* table, int64_t stride, int n, const int* rows,
              const float* by) {
  in_pieces(
      D, [&](auto v, int64_t at) { add_rows<v()>(out + at, table + at, stride, n, rows, by); },
      [&](int64_t at) {
        for (int k = 0; k < n; k++) out[at] += by[k] * table[rows[k] * stride + at];
      });
}

// out_k += w · table[rows_k], for w (D,)
void add_dots(float* out, const float* w, int64_t D, const float* table, int64_t stride, int n,
              const int* rows) {
  in_pieces(
      D, [&](auto v, int64_t at) { add_dots<v()>(out, w + at, table + at, stride, n, rows); },
      [&](int64_t at) {
        for (int k = 0; k < n; k++) out[k] += w[at] * table[rows[k] * stride + at];
      });
}

float squares(const float* x, int64_t D) {
  Lane acc{};
  float rest = 0;
  in_pieces(
      D,
      [&](auto v, int64_t at) {
        for (int i = 0; i < v(); i++) acc += load(x + at + L * i) * load(x + at + L * i);
      },
      [&](int64_t at) { rest += x[at] * x[at]; });
  return sum(acc) + rest;
}

// Sets `place` to all k < n with low < x_k·r < high or x_k·r NaN; returns how many.
inline int between(const float* x, int n, float r, float low, float high, int* place) {
  int found = 0, k = 0;
#ifdef __AVX512F__
  __m512 by = _mm512_set1_ps(r), least = _mm512_set1_ps(low), most = _mm512_set1_ps(high);
  __m512i number = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (; k + L <= n; k += L) {
    __m512 score = _mm512_mul_ps(_mm512_loadu_ps(x + k), by);
    __mmask16 in = _mm512_cmp_ps_mask(score, least, _CMP_NLE_UQ);
    in = _mm512_mask_cmp_ps_mask(in, score, most, _CMP_NGE_UQ);
    _mm512_mask_compressstoreu_epi32(place + found, in, number);
    found += __builtin_popcount(in);
    number = _mm512_add_epi32(number, _mm512_set1_epi32(L));
  }
#endif
  for (; k < n; k++) {
    place[found] = k;
    found += !(x[k] * r <= low) && !(x[k] * r >= high);
  }
  return found;
}

// ---- Adam of one decoder row (optimizer.py), and the row's norm after the step.

inline float of_half(uint16_t half) {
  uint32_t bits = uint32_t(half) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline Lane load(const uint16_t* p) {
  HalfLane half;
  std::memcpy(&half, p, sizeof half);
  BitLane bits = __builtin_convertvector(half, BitLane) << 16;
  Lane x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline void store(uint16_t* p, Lane x) {  // round to nearest, ties to even
  BitLane bits;
  std::memcpy(&bits, &x, sizeof bits);
  HalfLane half = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, HalfLane);
  std::memcpy(p, &half, sizeof half);
}
inline float value(const uint16_t* p) { return of_half(*p); }
inline float value(const float* p) { return *p; }
inline void put(float* p, float x) { *p = x; }
inline void put(uint16_t* p, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  *p = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

constexpr float BETA1 = 0.9f, BETA2 = 0.999f, EPSILON = 1e-8f;

// M: the first moment's type. each: whether each weight has a second moment, or one for the row.
template <class M>
void adam_row(float* w, const float* g, M* m, float* v, bool each, float rate, float correction,
              int64_t D) {
  Lane length{};
  if (!each) {
    *v = BETA2 * *v + (1 - BETA2) * (squares(g, D) / D);
    length = splat(rate / (std::sqrt(*v * correction) + EPSILON));
  }
  in_pieces(
      D,
      [&](auto pieces, int64_t at) {
        for (int64_t j = at; j < at + L * pieces(); j += L) {
          Lane gradient = load(g + j), fresh = load(m + j) * BETA1 + gradient * (1 - BETA1);
          if (each) {
            Lane second = load(v + j) * BETA2 + gradient * gradient * (1 - BETA2);
            store(v + j, second);
            for (int i = 0; i < L; i++)
              length[i] = rate / (std::sqrt(second[i] * correction) + EPSILON);
          }
          store(w + j, load(w + j) - length * fresh);
          store(m + j, fresh);
        }
      },
      [&](int64_t j) {
        float fresh = value(m + j) * BETA1 + g[j] * (1 - BETA1), own = length[0];
        if (each) {
          v[j] = BETA2 * v[j] + (1 - BETA2) * g[j] * g[j];
          own = rate / (std::sqrt(v[j] * correction) + EPSILON);
        }
        w[j] -= own * fresh;
        put(m + j, fresh);
      });
}

// ---- Candidates.

struct Candidates {
  vector<int> start, feature;   // by token: (B + 1), (P)
  vector<float> h;              // (P)
  vector<int> from, token;      // by feature: (F + 1), (P)
  vector<float> value, dh;      // (P) h again, and its gradient
};

// All (token, feature) with h·largest > t, and NaNs, so that the loss becomes NaN and is noticed.
Candidates candidates(const float* h, int64_t B, int64_t F, const float* largest, const float* t) {
  Candidates c;
  int threads = at::get_num_threads();
  vector<vector<int>> features(threads);
  c.start.assign(B + 1, 0);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static, 1)
    for (int part = 0; part < threads; part++) {
      vector<int>& found = features[part];
      size_t size = 0;
      for (int64_t b = B * part / threads; b < B * (part + 1) / threads; b++) {
        if (found.size() < size + F) found.resize(2 * size + F);
        int* out = found.data() + size;
        const float* row = h + b * F;
        int n = 0;
        for (int i = 0; i < F; i++) {
          out[n] = i;
          n += !(row[i] * largest[i] <= t[i]);
        }
        c.start[b + 1] = n;
        size += n;
      }
      found.resize(size);
    }
  }
  for (int64_t b = 0; b < B; b++) c.start[b + 1] += c.start[b];
  int P = c.start[B];
  c.feature.reserve(P);
  for (auto& found : features) c.feature.insert(c.feature.end(), found.begin(), found.end());
  c.h.resize(P), c.token.resize(P), c.value.resize(P), c.dh.assign(P, 0.f);
  c.from.assign(F + 1, 0);
  for (int i : c.feature) c.from[i + 1]++;
  for (int64_t i = 0; i < F; i++) c.from[i + 1] += c.from[i];
  vector<int> at(c.from.begin(), c.from.end() - 1);
  for (int64_t b = 0; b < B; b++)
    for (int k = c.start[b]; k < c.start[b + 1]; k++) {
      int i = c.feature[k], place = at[i]++;
      c.token[place] = b;
      c.h[k] = c.value[place] = h[b * F + i];
    }
  return c;
}

vector<float> largest_norms(const float* gates, int64_t G, int64_t F) {
  vector<float> largest(gates, gates + F);
  for (int64_t g = 1; g < G; g++)
    for (int64_t i = 0; i < F; i++) largest[i] = std::max(largest[i], gates[g * F + i]);
  return largest;
}

// The count-th largest h·r, or 0 if fewer are positive. Scores above a bound are counted by their
// leading bits, and the bucket with the count-th is partially sorted; if too few scores reach the
// bound, it is lowered.
Tensor cut(const Tensor& h_, const Tensor& gates_, int64_t count, double hint) {
  int64_t B = h_.size(0), F = h_.size(1), G = gates_.size(0);
  const float* h = h_.const_data_ptr<float>();
  vector<float> largest = largest_norms(gates_.const_data_ptr<float>(), G, F);
  Tensor by_feature = gates_.t().contiguous();
  const float* r = by_feature.const_data_ptr<float>();
  constexpr int SHIFT = 16, BUCKETS = 1 << 15;
  auto bits = [](float x) {
    uint32_t b;
    std::memcpy(&b, &x, 4);
    return b;
  };
  int threads = at::get_num_threads();
  float bound = hint > 0 ? float(hint) * 0.8f : 0.f;
  for (;; bound = bound > 1e-6f ? bound * 0.5f : 0.f) {
    float least = std::max(bound, std::numeric_limits<float>::min());
    vector<float> t(F, std::nextafter(least, 0.f));
    Candidates c = candidates(h, B, F, largest.data(), t.data());
    vector<vector<int64_t>> counts(threads, vector<int64_t>(BUCKETS, 0));
    vector<vector<float>> inside(threads);
    bool wrong = false;
    auto scores = [&](auto use) {  // use(part, score) for each score that reaches the bound
#pragma omp parallel for schedule(static, 1) num_threads(threads)
      for (int part = 0; part < threads; part++)
        for (int64_t k = int64_t(c.h.size()) * part / threads,
                     end = int64_t(c.h.size()) * (part + 1) / threads;
             k < end; k++) {
          const float* own = r + int64_t(c.feature[k]) * G;
          for (int64_t g = 0; g < G; g++) {
            float score = c.h[k] * own[g];
            if (!(score < least)) use(part, score);
          }
        }
    };
    scores([&](int part, float score) { counts[part][(bits(score) >> SHIFT) & (BUCKETS - 1)]++; });
    int64_t above = 0, own = 0;
    int bucket = BUCKETS - 1;
    for (int top = bits(INFINITY) >> SHIFT; bucket >= 0; bucket--) {
      own = 0;
      for (auto& part : counts) own += part[bucket];
      wrong |= bucket >= top && own;
      if (above + own >= count) break;
      above += own;
    }
    if (wrong) return at::full({}, NAN, h_.options());
    if (bucket < 0) {
      if (bound == 0.f) return at::zeros({}, h_.options());
      continue;
    }
    scores([&](int part, float score) {
      if (int(bits(score) >> SHIFT) == bucket) inside[part].push_back(score);
    });
    vector<float> all;
    for (auto& part : inside) all.insert(all.end(), part.begin(), part.end());
    auto nth = all.begin() + (count - above - 1);
    std::nth_element(all.begin(), nth, all.end(), std::greater<float>());
    return at::full({}, *nth, h_.options());
  }
}

// ---- The penalty, feature by feature: λ Σ_i ω_i (1 + ω_i/ω_0), or its mean over gates.

struct Penalty {
  float sparsity, omega_0, bandwidth;
  bool per_snapshot;
};

// Adds to c.dh; sets the gradient of each gate's decoder norm, dr (G, F), and the feature's part of
// the penalty and of the threshold's gradient.
//
// sampled: (samples,) the feature's h at the tokens that thresholds learn from. chosen: (B,) 1 at
// these.
void penalise(Candidates& c, const Penalty& p, int64_t i, int64_t B, int64_t F, int64_t G,
              const float* gates, float t, const float* sampled, int samples, const float* chosen,
              vector<float>& held, float* dr, double& penalty, float& dt) {
  int from = c.from[i], n = c.from[i + 1] - from, padded = (n + L - 1) / L * L;
  held.assign(size_t(G + 3) * padded, 0.f);
  float *tanh = held.data(), *h = tanh + size_t(G) * padded, *dh = h + padded, *of_sample = dh + padded;
  std::copy_n(&c.value[from], n, h);
  for (int k = 0; k < n; k++) of_sample[k] = chosen[c.token[from + k]];
  vector<float> omega(G);
  float mean = 0;
  for (int64_t g = 0; g < G; g++) {
    Lane r = splat(gates[g * F + i]), total{};
    for (int k = 0; k < padded; k += L) {
      Lane score = load(h + k) * r;
      Lane value = tanh_of(score > t ? score * 4.f : Lane{});
      store(tanh + g * padded + k, value);
      total += value;
    }
    omega[g] = sum(total) / B;
    mean += omega[g] / G;
  }
  float low = std::max(0.f, t - p.bandwidth / 2), high = t + p.bandwidth / 2;
  penalty = 0;
  for (int64_t g = 0; g < G; g++) {
    float w = p.per_snapshot ? omega[g] : mean, r = gates[g * F + i];
    penalty += double(w) * (1 + w / p.omega_0) / G;
    float slope = p.sparsity * (1 + 2 * w / p.omega_0) * 4 / (float(B) * G);
    Lane gained{}, near_by{};  // Σ of 1 − [open] tanh² over sampled pairs near the threshold
    for (int k = 0; k < padded; k += L) {
      Lane th = load(tanh + g * padded + k), value = load(h + k), score = value * r;
      Lane dz = score > t ? slope * (1.f - th * th) : Lane{};
      store(dh + k, load(dh + k) + dz * r);
      gained += dz * value;
      near_by -= score < high ? load(of_sample + k) * th * th : Lane{};
    }
    for (int j = 0; j < samples; j += L) {
      Lane score = load(sampled + j) * r;
      near_by += (score > low) & (score < high) ? splat(1.f) : Lane{};
    }
    dr[g * F + i] = sum(gained);
    dt += slope * r * sum(near_by);
  }
  for (int k = 0; k < n; k++) c.dh[from + k] += dh[k];
}

// ---- The step.

// Computes the error by site and the gradients of all weights. If moments are given, Adam updates
// the rows of the decoder at once, and the decoder's gradient is not kept.
//
// target: (S, B, D), with any stride between rows. W: (S, F, D). r: (S, F) norms of its rows,
// updated. gates: (G, F) factors of h in the gates. t: (F,). share: factor of dr in the decoder's
// gradient, 1/sites if there is one gate.
// c: 2/(B·sites). sample: tokens that the thresholds learn from. penalty: (λ, ω_0, ε, per
// snapshot). Returns the error by block (S,), the penalty, the open gates (S, F), and the number of
// candidates.
std::tuple<Tensor, Tensor, Tensor, int64_t> step(
    const Tensor& h_, const Tensor& x_, const Tensor& target_, Tensor W_, Tensor r_,
    const Tensor& gates_, const Tensor& b_dec_, const Tensor& t_, double weight, double share,
    bool refit, bool backward, const optional<Tensor>& sample_, at::ArrayRef<double> penalty_,
    Tensor g_enc, Tensor g_b_enc, const optional<Tensor>& g_dec, Tensor g_b_dec, Tensor g_log_t,
    const optional<Tensor>& first, const optional<Tensor>& second, double rate, double correction) {
  int64_t B = h_.size(0), F = h_.size(1), S = W_.size(0), D = W_.size(2), G = gates_.size(0);
  const float *h = h_.const_data_ptr<float>(), *gates = gates_.const_data_ptr<float>();
  const float *target = target_.const_data_ptr<float>(), *b_dec = b_dec_.const_data_ptr<float>();
  const float* t = t_.const_data_ptr<float>();
  float *W = W_.data_ptr<float>(), *r = r_.data_ptr<float>();
  int64_t by_block = target_.stride(0), by_token = target_.stride(1);
  float c = weight;
  int threads = at::get_num_threads();
  bool penalised = !penalty_.empty();
  Penalty p{};
  if (penalised) p = {float(penalty_[0]), float(penalty_[1]), float(penalty_[2]), penalty_[3] != 0};

  TORCH_CHECK(target_.size(0) == S && target_.size(1) == B && target_.size(2) == D &&
                  target_.stride(2) == 1 && x_.size(0) == B && W_.is_contiguous(),
              "core: target is not (S, B, D), or x not (B, I)");
  Candidates pairs = candidates(h, B, F, largest_norms(gates, G, F).data(), t);
  vector<int> sample;
  if (sample_ && backward) {
    const int64_t* given = sample_->const_data_ptr<int64_t>();
    sample.assign(given, given + sample_->numel());
  }
  int samples = sample.size(), padded = (samples + L - 1) / L * L;
  // (F, samples) h, with −1 as padding; and (B,) 1 at the sampled tokens
  vector<float> sampled(size_t(F) * padded, -1.f), chosen(B, 0.f);
  for (int j : sample) chosen[j] = 1.f;
  for (int j = 0; j < samples; j++)
    for (int64_t i = 0; i < F; i++) sampled[i * padded + j] = h[sample[j] * F + i];

  vector<float> dr(penalised ? size_t(G) * F : 0), dt(size_t(S) * F, 0.f), penalty_dt(F, 0.f);
  vector<double> penalties(F, 0.);
  Tensor opened_ = at::zeros({S, F}, h_.options().dtype(at::kLong));
  Tensor errors_ = at::zeros({S}, at::kDouble);
  int64_t* opened = opened_.data_ptr<int64_t>();
  double* errors = errors_.data_ptr<double>();
  vector<float> dh(backward ? size_t(S) * pairs.h.size() : 0, 0.f), shared_E;
  bool apart = S >= threads;  // one thread per block; otherwise all threads share each block
  if (!apart) shared_E.resize(size_t(B) * D);

#pragma omp parallel num_threads(threads)
  {
    vector<float> held, by, dots, row(D), near_by(D), ones(samples, 1.f),
        own_E(apart ? size_t(B) * D : 0);
    vector<int> rows, place;
    float* E = apart ? own_E.data() : shared_E.data();
    auto fit = [&](size_t n) {
      if (rows.size() < n) rows.resize(n), place.resize(n), by.resize(n), dots.resize(n);
    };
    auto decode = [&](int64_t s, int64_t b) {  // E = Σ_i f_i W_i + b_dec − target
      const float *gate = gates + (G == 1 ? 0 : s * F), *wanted = target + s * by_block + b * by_token;
      int from = pairs.start[b], n = 0, P = pairs.start[b + 1] - from;
      fit(P + 1);
      for (int k = from; k < from + P; k++) {
        int i = pairs.feature[k];
        rows[n] = i, by[n] = pairs.h[k];
        n += !(pairs.h[k] * gate[i] <= t[i]);
      }
      for (int64_t j = 0; j < D && b + AHEAD < B; j += L)
        __builtin_prefetch(wanted + AHEAD * by_token + j);
      float* e = E + b * D;
      for (int64_t j = 0; j < D; j++) e[j] = b_dec[s * D + j] - wanted[j];
      add_rows(e, D, W + s * F * D, D, n, rows.data(), by.data());
    };
    auto sums = [&](int64_t s) {
      for (int64_t b = 0; b < B; b++) errors[s] += squares(E + b * D, D);
      if (!backward) return;
      float* out = g_b_dec.data_ptr<float>() + s * D;
      std::fill_n(out, D, 0.f);
      for (int64_t b = 0; b < B; b++)
        for (int64_t j = 0; j < D; j++) out[j] += E[b * D + j];
      for (int64_t j = 0; j < D; j++) out[j] *= c;
    };
    auto gradients = [&](int64_t s, int64_t i) {
      const float* gate = gates + (G == 1 ? 0 : s * F);
      float* w = W + (s * F + i) * D;
      int from = pairs.from[i], P = pairs.from[i + 1] - from;
      const float* value = &pairs.value[from];
      const int* token = &pairs.token[from];
      fit(P + samples + 1);
      int n = between(value, P, gate[i], t[i], NAN, place.data());
      for (int k = 0; k < n; k++) rows[k] = token[place[k]], by[k] = value[place[k]];
      opened[s * F + i] = n;
      if (!backward) return;
      std::fill(row.begin(), row.end(), 0.f);
      std::fill_n(dots.begin(), n, 0.f);
      add_rows(row.data(), D, E, D, n, rows.data(), by.data());  // Σ_b f E
      add_dots(dots.data(), w, D, E, D, n, rows.data());         // E · W
      float* to = &dh[s * pairs.h.size() + from];
      for (int k = 0; k < n; k++) to[place[k]] = c * dots[k];
      float own = 0;  // coefficient of W in its own gradient
      if (penalised && gate[i] > 0) own = dr[(G == 1 ? 0 : s * F) + i] * share / gate[i];
      if (refit) {  // closed gates: Σ_b h (E + h W)
        int shut = 0;
        for (int k = 0; k < P; k++) {
          rows[shut] = token[k], by[shut] = value[k];
          shut += value[k] * gate[i] <= t[i];
        }
        add_rows(row.data(), D, E, D, shut, rows.data(), by.data());
        for (int k = 0; k < shut; k++) own += c * by[k] * by[k];
      }
      for (int64_t j = 0; j < D; j++) row[j] = c * row[j] + own * w[j];
      if (samples) {  // Σ of E · W over the sampled pairs near the threshold
        float low = std::max(0.f, t[i] - p.bandwidth / 2), high = t[i] + p.bandwidth / 2, along = 0;
        int own_row = 0;
        int close = between(&sampled[i * padded], samples, gate[i], low, high, place.data());
        for (int j = 0; j < close; j++) rows[j] = sample[place[j]];
        std::fill(near_by.begin(), near_by.end(), 0.f);
        add_rows(near_by.data(), D, E, D, close, rows.data(), ones.data());
        add_dots(&along, w, D, near_by.data(), D, 1, &own_row);
        dt[s * F + i] = c * along;
      }
      int64_t at = s * F + i;
      if (g_dec) std::copy_n(row.data(), D, g_dec->data_ptr<float>() + at * D);
      if (first) {
        bool each = second->numel() == W_.numel();
        float* v = second->data_ptr<float>() + (each ? at * D : at);
        if (first->scalar_type() == at::kBFloat16)
          adam_row(w, row.data(), reinterpret_cast<uint16_t*>(first->data_ptr()) + at * D, v, each,
                   rate, correction, D);
        else
          adam_row(w, row.data(), first->data_ptr<float>() + at * D, v, each, rate, correction, D);
        r[at] = std::sqrt(squares(w, D));
      }
    };

    if (penalised) {
#pragma omp for schedule(dynamic, 16)
      for (int64_t i = 0; i < F; i++)
        penalise(pairs, p, i, B, F, G, gates, t[i], &sampled[i * padded], padded, chosen.data(), held,
                 dr.data(), penalties[i], penalty_dt[i]);
    }
    if (apart) {
#pragma omp for schedule(dynamic, 1)
      for (int64_t s = 0; s < S; s++) {
        for (int64_t b = 0; b < B; b++) decode(s, b);
        sums(s);
        for (int64_t i = 0; i < F; i++) gradients(s, i);
      }
    } else {
      for (int64_t s = 0; s < S; s++) {
#pragma omp for schedule(dynamic, 16)
        for (int64_t b = 0; b < B; b++) decode(s, b);
#pragma omp single nowait
        sums(s);
#pragma omp for schedule(dynamic, 16)
        for (int64_t i = 0; i < F; i++) gradients(s, i);
      }
    }
    if (backward) {
      const float* x = x_.const_data_ptr<float>();
      int64_t I = x_.size(1);
#pragma omp for schedule(dynamic, 16)
      for (int64_t i = 0; i < F; i++) {
        int from = pairs.from[i], P = pairs.from[i + 1] - from;
        float *own = &pairs.dh[from], *out = g_enc.data_ptr<float>() + i * I, total = 0;
        for (int64_t s = 0; s < S; s++) {
          const float* part = &dh[s * pairs.h.size() + from];
          for (int k = 0; k < P; k++) own[k] += part[k];
        }
        std::fill_n(out, I, 0.f);
        add_rows(out, I, x, I, P, &pairs.token[from], own);
        for (int k = 0; k < P; k++) total += own[k];
        g_b_enc.data_ptr<float>()[i] = total;
        if (!samples) continue;
        float moved = penalty_dt[i];
        for (int64_t s = 0; s < S; s++) moved += dt[s * F + i];
        g_log_t.data_ptr<float>()[i] = -(t[i] / p.bandwidth) * moved * (float(B) / samples);
      }
    }
  }
  double penalty = 0;
  for (double each : penalties) penalty += each;
  return {errors_, at::full({}, penalty, at::kDouble), opened_, int64_t(pairs.h.size())};
}

// (S, F): norms of a decoder's rows, with the same bits as after a step.
Tensor norms(const Tensor& W) {
  int64_t rows = W.size(0) * W.size(1), D = W.size(2);
  Tensor out = at::empty({W.size(0), W.size(1)}, W.options());
  for (int64_t i = 0; i < rows; i++)
    out.data_ptr<float>()[i] = std::sqrt(squares(W.const_data_ptr<float>() + i * D, D));
  return out;
}

}  // namespace

TORCH_LIBRARY(ontogeny_core, m) {
  m.def("cut(Tensor h, Tensor gates, int count, float hint) -> Tensor", &cut);
  m.def("norms(Tensor W) -> Tensor", &norms);
  m.def(
      "step(Tensor h, Tensor x, Tensor target, Tensor(a!) W, Tensor(b!) r, Tensor gates, "
      "Tensor b_dec, Tensor t, float weight, float share, bool refit, bool backward, "
      "Tensor? sample, float[] penalty, Tensor(c!) g_enc, Tensor(d!) g_b_enc, Tensor(e!)? g_dec, "
      "Tensor(f!) g_b_dec, Tensor(g!) g_log_t, Tensor(h!)? first, Tensor(i!)? second, "
      "float rate, float correction) -> (Tensor, Tensor, Tensor, int)",
      &step);
}
