// Hyper-connection gates, Sinkhorn normalisation, and the two mixes of the residual streams.
#include "kernels/cpu/mhc.h"

#include <algorithm>

#include "kernels/cpu/avx2.h"
#include "kernels/exp.h"

namespace reprise::kernels::cpu {
namespace {

constexpr int64_t kColumns = 64;  // of the streams that are mixed together

// The longest gate vector.
constexpr int64_t kTermsMax = (2 + kMaxStreams) * kMaxStreams;

void NormaliseRows(float* c, int64_t n, float eps) {
  for (int64_t j = 0; j < n; ++j) {
    float sum = 0;
    for (int64_t k = 0; k < n; ++k) sum += c[j * n + k];
    const float divisor = sum + eps;
    for (int64_t k = 0; k < n; ++k) c[j * n + k] /= divisor;
  }
}

void NormaliseColumns(float* c, int64_t n, float eps) {
  float divisor[kMaxStreams] = {};
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t k = 0; k < n; ++k) divisor[k] += c[j * n + k];
  }
  for (int64_t k = 0; k < n; ++k) divisor[k] += eps;
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t k = 0; k < n; ++k) c[j * n + k] /= divisor[k];
  }
}

// Gates of one token; the rows of mix are a softmax, not normalised further. `terms` is [(2 + n) *
// n].
REPRISE_INLINE void MakeGates(const HcParams& params, float* terms, HcGates* gates) {
  const int64_t n = params.streams;
  for (int64_t j = 0; j < n; ++j) {
    float* row = terms + (2 + j) * n;
    const float max = *std::max_element(row, row + n);
    for (int64_t k = 0; k < n; ++k) row[k] -= max;
  }
  for (int64_t i = 0; i < 2 * n; ++i) terms[i] = -terms[i];
  for (int64_t i = 0; i < (2 + n) * n; ++i) terms[i] = Exp(terms[i]);
  for (int64_t p = 0; p < n; ++p) {
    gates->pre[p] = 1.0f / (1.0f + terms[p]) + params.eps;
    gates->post[p] = 2.0f * (1.0f / (1.0f + terms[n + p]));
  }
  for (int64_t j = 0; j < n; ++j) {
    const float* row = terms + (2 + j) * n;
    float sum = 0;
    for (int64_t k = 0; k < n; ++k) sum += row[k];
    for (int64_t k = 0; k < n; ++k) gates->mix[j * n + k] = row[k] / sum + params.eps;
  }
}

REPRISE_AVX2 void MakeGatesAvx2(const HcParams& params, float* terms, HcGates* gates) {
  MakeGates(params, terms, gates);
}

// Four streams, the number that the models have: a matrix is four vectors.
using Four = float __attribute__((vector_size(16)));
using Indices = int32_t __attribute__((vector_size(16)));
// Matrices whose chains of divisions run side by side.
constexpr int kPair = 2;

REPRISE_INLINE void Transpose(Four* c) {
  const Four a = __builtin_shuffle(c[0], c[1], Indices{0, 4, 1, 5});
  const Four b = __builtin_shuffle(c[0], c[1], Indices{2, 6, 3, 7});
  const Four d = __builtin_shuffle(c[2], c[3], Indices{0, 4, 1, 5});
  const Four e = __builtin_shuffle(c[2], c[3], Indices{2, 6, 3, 7});
  c[0] = __builtin_shuffle(a, d, Indices{0, 1, 4, 5});
  c[1] = __builtin_shuffle(a, d, Indices{2, 3, 6, 7});
  c[2] = __builtin_shuffle(b, e, Indices{0, 1, 4, 5});
  c[3] = __builtin_shuffle(b, e, Indices{2, 3, 6, 7});
}

REPRISE_INLINE void NormaliseFour(Four* c, Four eps) {
  const Four divisor = c[0] + c[1] + c[2] + c[3] + eps;
  for (int j = 0; j < 4; ++j) c[j] /= divisor;
}

// What NormaliseColumns, then `rounds` times NormaliseRows and NormaliseColumns do to kPair
// matrices.
void SinkhornFour(float* first, float* second, int64_t rounds, float eps) {
  float* const at[kPair] = {first, second};
  const Four all = {eps, eps, eps, eps};
  Four c[kPair][4];
  for (int m = 0; m < kPair; ++m) {
    for (int j = 0; j < 4; ++j)
      c[m][j] = Four{at[m][4 * j], at[m][4 * j + 1], at[m][4 * j + 2], at[m][4 * j + 3]};
  }
  for (int m = 0; m < kPair; ++m) NormaliseFour(c[m], all);
  for (int64_t i = 0; i < 2 * rounds; ++i) {
    // The rows of a matrix are the columns of its transpose.
    for (int m = 0; m < kPair; ++m) Transpose(c[m]);
    for (int m = 0; m < kPair; ++m) NormaliseFour(c[m], all);
  }
  for (int m = 0; m < kPair; ++m) {
    for (int j = 0; j < 4; ++j) {
      for (int k = 0; k < 4; ++k) at[m][4 * j + k] = c[m][j][k];
    }
  }
}

void Sinkhorn(const HcParams& params, HcGates* gates, int64_t count) {
  const int64_t n = params.streams, rounds = std::max<int64_t>(0, params.sinkhorn_iterations - 1);
  if (n == 4) {
    HcGates spare = {};
    for (int64_t t = 0; t < count; t += kPair) {
      SinkhornFour(gates[t].mix, t + 1 < count ? gates[t + 1].mix : spare.mix, rounds, params.eps);
    }
    return;
  }
  for (int64_t t = 0; t < count; ++t) {
    NormaliseColumns(gates[t].mix, n, params.eps);
    for (int64_t i = 0; i < rounds; ++i) {
      NormaliseRows(gates[t].mix, n, params.eps);
      NormaliseColumns(gates[t].mix, n, params.eps);
    }
  }
}

REPRISE_INLINE void Collapse(const float* residual, const float* pre, int64_t streams, int64_t dim,
                             float* out) {
  for (int64_t i = 0; i < dim; ++i) out[i] = pre[0] * residual[i];
  for (int64_t p = 1; p < streams; ++p) {
    const float* row = residual + p * dim;
    for (int64_t i = 0; i < dim; ++i) out[i] += pre[p] * row[i];
  }
}

// kCount columns of all streams.
template <int64_t kCount>
REPRISE_INLINE void ExpandColumns(const float* y, const HcGates& gates, int64_t streams,
                                  int64_t dim, float* residual) {
  float mixed[kMaxStreams][kCount];
  for (int64_t k = 0; k < streams; ++k) {
    for (int64_t i = 0; i < kCount; ++i) mixed[k][i] = gates.post[k] * y[i];
    for (int64_t j = 0; j < streams; ++j) {
      const float weight = gates.mix[j * streams + k];
      const float* row = residual + j * dim;
      for (int64_t i = 0; i < kCount; ++i) mixed[k][i] += weight * row[i];
    }
  }
  for (int64_t k = 0; k < streams; ++k) std::copy_n(mixed[k], kCount, residual + k * dim);
}

REPRISE_INLINE void Expand(const float* y, const HcGates& gates, int64_t streams, int64_t dim,
                           float* residual) {
  int64_t i = 0;
  for (; i + kColumns <= dim; i += kColumns)
    ExpandColumns<kColumns>(y + i, gates, streams, dim, residual + i);
  for (; i + 8 <= dim; i += 8) ExpandColumns<8>(y + i, gates, streams, dim, residual + i);
  for (; i < dim; ++i) ExpandColumns<1>(y + i, gates, streams, dim, residual + i);
}

REPRISE_AVX2 void CollapseAvx2(const float* residual, const float* pre, int64_t streams,
                               int64_t dim, float* out) {
  Collapse(residual, pre, streams, dim, out);
}

REPRISE_AVX2 void ExpandAvx2(const float* y, const HcGates& gates, int64_t streams, int64_t dim,
                             float* residual) {
  Expand(y, gates, streams, dim, residual);
}

}  // namespace

void HcMakeGates(const HcParams& params, const float* u, int64_t count, const float* base,
                 const float* scale, HcGates* gates) {
  const int64_t n = params.streams, length = (2 + n) * n;
  float terms[kTermsMax];
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t i = 0; i < length; ++i)
      terms[i] = scale[std::min<int64_t>(i / n, 2)] * u[t * length + i] + base[i];
    internal::HasAvx2() ? MakeGatesAvx2(params, terms, &gates[t])
                        : MakeGates(params, terms, &gates[t]);
  }
  Sinkhorn(params, gates, count);
}

void HcHeadGates(const HcParams& params, const float* u, const float* base, float scale,
                 float* pre) {
  for (int64_t p = 0; p < params.streams; ++p)
    pre[p] = 1.0f / (1.0f + Exp(-(scale * u[p] + base[p]))) + params.eps;
}

void HcCollapse(const float* residual, const float* pre, int64_t streams, int64_t dim, float* out) {
  internal::HasAvx2() ? CollapseAvx2(residual, pre, streams, dim, out)
                      : Collapse(residual, pre, streams, dim, out);
}

void HcExpand(const float* y, const HcGates& gates, int64_t streams, int64_t dim, float* residual) {
  internal::HasAvx2() ? ExpandAvx2(y, gates, streams, dim, residual)
                      : Expand(y, gates, streams, dim, residual);
}

}  // namespace reprise::kernels::cpu
