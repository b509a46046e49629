// Hyper-connection gates, Sinkhorn normalisation, and the two mixes of the residual streams.
#include "kernels/cpu/mhc.h"

#include <algorithm>
#include <cmath>

namespace reprise::kernels::cpu {
namespace {

float Sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

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

void SoftmaxRows(float* c, int64_t n, float eps) {
  for (int64_t j = 0; j < n; ++j) {
    float* row = c + j * n;
    const float max = *std::max_element(row, row + n);
    float sum = 0;
    for (int64_t k = 0; k < n; ++k) {
      row[k] = std::exp(row[k] - max);
      sum += row[k];
    }
    for (int64_t k = 0; k < n; ++k) row[k] = row[k] / sum + eps;
  }
}

}  // namespace

void HcMakeGates(const HcParams& params, const float* u, const float* base, const float* scale, HcGates* gates) {
  const int64_t n = params.streams;
  for (int64_t p = 0; p < n; ++p) {
    gates->pre[p] = Sigmoid(scale[0] * u[p] + base[p]) + params.eps;
    gates->post[p] = 2.0f * Sigmoid(scale[1] * u[n + p] + base[n + p]);
  }
  for (int64_t i = 0; i < n * n; ++i) gates->mix[i] = scale[2] * u[2 * n + i] + base[2 * n + i];
  SoftmaxRows(gates->mix, n, params.eps);
  NormaliseColumns(gates->mix, n, params.eps);
  for (int64_t i = 1; i < params.sinkhorn_iterations; ++i) {
    NormaliseRows(gates->mix, n, params.eps);
    NormaliseColumns(gates->mix, n, params.eps);
  }
}

void HcHeadGates(const HcParams& params, const float* u, const float* base, float scale, float* pre) {
  for (int64_t p = 0; p < params.streams; ++p) pre[p] = Sigmoid(scale * u[p] + base[p]) + params.eps;
}

void HcCollapse(const float* residual, const float* pre, int64_t streams, int64_t dim, float* out) {
  for (int64_t i = 0; i < dim; ++i) out[i] = pre[0] * residual[i];
  for (int64_t p = 1; p < streams; ++p) {
    const float* row = residual + p * dim;
    for (int64_t i = 0; i < dim; ++i) out[i] += pre[p] * row[i];
  }
}

void HcExpand(const float* y, const HcGates& gates, int64_t streams, int64_t dim, float* residual) {
  for (int64_t i = 0; i < dim; ++i) {
    float mixed[kMaxStreams];
    for (int64_t k = 0; k < streams; ++k) {
      float sum = gates.post[k] * y[i];
      for (int64_t j = 0; j < streams; ++j) sum += gates.mix[j * streams + k] * residual[j * dim + i];
      mixed[k] = sum;
    }
    for (int64_t k = 0; k < streams; ++k) residual[k * dim + i] = mixed[k];
  }
}

}  // namespace reprise::kernels::cpu
