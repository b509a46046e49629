#include "engine/model.h"

#include <algorithm>

#include "engine/forward_pass.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/quantise.h"
#include "kernels/cpu/rmsnorm.h"
#include "kernels/cpu/rope.h"

namespace reprise::engine {
namespace {

namespace cpu = kernels::cpu;

constexpr int64_t kGrainMacs = 1 << 16;  // multiply-adds that are worth waking a thread for

std::vector<float> CompressFrequencies(const ModelConfig& c) {
  const cpu::YarnParams yarn{c.yarn_factor, c.yarn_original_context, c.yarn_beta_fast,
                             c.yarn_beta_slow};
  return cpu::RopeFrequencies(c.rope_dim, c.compress_rope_theta, &yarn);
}

}  // namespace

Model::Model(const ModelConfig* config, bool reference, bool mtp, Communicator* ranks)
    : config_(config),
      reference_(reference),
      ranks_(ranks),
      layout_(*config, mtp ? 1 : 0, /*packed=*/reference),
      window_frequencies_(cpu::RopeFrequencies(config->rope_dim, config->rope_theta, nullptr)),
      compress_frequencies_(CompressFrequencies(*config)) {}

void Model::Forward(const ModelWeights& weights, absl::Span<const Segment> segments,
                    Workers* workers, Workspace* workspace) const {
  ForwardPass(*this, weights, segments, workers, workspace).Run();
}

void Model::Draft(const ModelWeights& weights, absl::Span<const Segment> segments, Workers* workers,
                  Workspace* workspace) const {
  ForwardPass(*this, weights, segments, workers, workspace).RunDraft();
}

ForwardPass::ForwardPass(const Model& model, const ModelWeights& weights,
                         absl::Span<const Segment> segments, Workers* workers, Workspace* workspace)
    : model_(model),
      weights_(weights),
      c_(*model.config_),
      reference_(model.reference_),
      segments_(segments),
      workers_(workers),
      workspace_(workspace),
      ranks_(model.ranks_),
      groups_(Mine(c_.o_groups)),
      heads_{groups_.begin * (c_.num_heads / c_.o_groups),
             groups_.end * (c_.num_heads / c_.o_groups)} {
  workspace_->positions.clear();
  for (size_t s = 0; s < segments_.size(); ++s) {
    const Segment& segment = segments_[s];
    first_row_.push_back(rows_);
    const int64_t count = static_cast<int64_t>(segment.tokens.size());
    segment.kv->Reserve(segment.start + count);
    for (int64_t i = 0; i < count; ++i) {
      segment_of_.push_back(static_cast<int64_t>(s));
      workspace_->positions.push_back(segment.start + i);
    }
    rows_ += count;
  }
  hc_gates_.resize(static_cast<size_t>(rows_));
}

float* ForwardPass::Get(Buffer buffer, int64_t floats) {
  std::vector<float>& memory = workspace_->buffers[buffer];
  if (static_cast<int64_t>(memory.size()) < floats) memory.resize(static_cast<size_t>(floats));
  return memory.data();
}

int32_t ForwardPass::token(int64_t row) const {
  const int64_t s = segment_of_[row];
  return segments_[s].tokens[row - first_row_[s]];
}

Share ForwardPass::Mine(int64_t n) const {
  return ranks_ == nullptr ? Share{0, n} : ShareOf(n, ranks_->rank(), ranks_->size());
}

void ForwardPass::GatherColumns(float* y, int64_t rows, int64_t columns, int64_t unit) {
  if (ranks_ == nullptr) return;
  std::vector<int64_t> bounds(static_cast<size_t>(ranks_->size()) + 1, 0);
  for (int rank = 0; rank < ranks_->size(); ++rank)
    bounds[rank + 1] = ShareOf(columns / unit, rank, ranks_->size()).end * unit * rows;
  if (rows == 1) return ranks_->AllGather(y, bounds);
  float* gathered = Get(kGathered, rows * columns);
  // fn(row's columns of the rank in y, the same in `gathered`, how many)
  const auto each_row = [&](int rank, const auto& fn) {
    const int64_t first = bounds[rank] / rows, width = bounds[rank + 1] / rows - first;
    for (int64_t row = 0; row < rows; ++row)
      fn(y + row * columns + first, gathered + bounds[rank] + row * width, width);
  };
  each_row(ranks_->rank(), [](const float* own, float* to, int64_t n) { std::copy_n(own, n, to); });
  ranks_->AllGather(gathered, bounds);
  for (int rank = 0; rank < ranks_->size(); ++rank) {
    if (rank == ranks_->rank()) continue;
    each_row(rank, [](float* to, const float* theirs, int64_t n) { std::copy_n(theirs, n, to); });
  }
}

void ForwardPass::MultiplyOn(Workers* workers, const float* x, int64_t x_stride, int64_t rows,
                             const Matrix& w, float* y, int64_t y_stride, Share part) {
  const int64_t grain = kGrainMacs / std::max<int64_t>(1, rows * w.cols) + 1;
  ParallelFor(workers, part.size(), grain, [&](int64_t begin, int64_t end) {
    cpu::Matmul(x, x_stride, rows, w, part.begin + begin, part.begin + end, y, y_stride);
  });
}

void ForwardPass::Multiply(const float* x, int64_t x_stride, int64_t rows, const Matrix& w,
                           float* y, int64_t y_stride) {
  MultiplyOn(workers_, x, x_stride, rows, w, y, y_stride, {0, w.rows});
}

void ForwardPass::Round(float* x, int64_t n) const {
  if (reference_) cpu::RoundToBf16(x, n);
}

const float* ForwardPass::InputOf(const Matrix& w, const float* x, int64_t rows, int64_t n) {
  if (!reference_ || !Quantised(w)) return x;
  float* out = Get(kQuantised, rows * n);
  ParallelFor(workers_, rows, kGrainRows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      cpu::QuantiseFp8(x + row * n, n, cpu::kFp8Group, out + row * n);
  });
  return out;
}

void ForwardPass::RoundRows(float* x, int64_t rows, int64_t n, Share part) const {
  if (!reference_) return;
  ParallelFor(workers_, rows, kGrainRows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      cpu::RoundToBf16(x + row * n + part.begin, part.size());
  });
}

void ForwardPass::Linear(const float* x, int64_t rows, const Matrix& w, float* y, Share part) {
  MultiplyOn(workers_, InputOf(w, x, rows, w.cols), w.cols, rows, w, y, w.rows, part);
  RoundRows(y, rows, w.rows, part);
}

void ForwardPass::Normalise(float* x, int64_t rows, const Vector& weight) {
  const int64_t n = static_cast<int64_t>(weight.size());
  ParallelFor(workers_, rows, kGrainRows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      cpu::RmsNorm(x + row * n, weight.data(), n, c_.norm_eps, x + row * n);
      Round(x + row * n, n);
    }
  });
}

void ForwardPass::Run() {
  Embed();
  MakeAngles();
  for (int64_t layer = 0; layer < c_.num_layers; ++layer) Layer(layer, weights_.layers[layer]);
  Head(weights_.output);
  const int64_t flat = c_.hc_streams * c_.hidden_size;
  const float* residual = Get(kResidual, rows_ * flat);
  for (size_t s = 0; s < segments_.size(); ++s) {
    const Segment& segment = segments_[s];
    const int64_t count = static_cast<int64_t>(segment.tokens.size());
    segment.kv->set_length(segment.start + count);
    if (segment.residual != nullptr)
      std::copy_n(residual + first_row_[s] * flat, count * flat, segment.residual);
  }
}

void ForwardPass::RunDraft() {
  const MtpWeights& w = weights_.mtp[0];
  MixNextToken(w);
  MakeAngles();
  Layer(c_.num_layers, w.layer);
  Head(w.head);
  for (const Segment& segment : segments_)
    segment.kv->set_mtp_length(segment.start + static_cast<int64_t>(segment.tokens.size()));
}

void ForwardPass::Layer(int64_t layer, const LayerWeights& w) {
  ReadStreams(w.hc_attn, w.attn_norm);
  Attention(layer, w.attn);
  WriteStreams();
  ReadStreams(w.hc_ffn, w.ffn_norm);
  Experts(layer, w.ffn);
  WriteStreams();
}

void ForwardPass::MixNextToken(const MtpWeights& w) {
  const int64_t width = c_.hidden_size, streams = c_.hc_streams, flat = streams * width;
  float* residual = Get(kResidual, rows_ * flat);
  float* embedded = Get(kEmbedded, rows_ * width);
  float* mixed = Get(kMixed, rows_ * width);
  // Each stream goes through h_proj as a row of its own; kExpertInput is free until the experts
  // run.
  float* normed = Get(kExpertInput, rows_ * flat);
  for (int64_t row = 0; row < rows_; ++row) {
    cpu::CopyRow(weights_.embed, token(row), embedded + row * width);
    Round(embedded + row * width, width);
    const int64_t s = segment_of_[row];
    std::copy_n(segments_[s].residual + (row - first_row_[s]) * flat, flat, normed + row * flat);
  }
  Normalise(embedded, rows_, w.enorm);
  Linear(embedded, rows_, w.e_proj, mixed);
  Normalise(normed, rows_ * streams, w.hnorm);
  Linear(normed, rows_ * streams, w.h_proj, residual);
  for (int64_t row = 0; row < rows_; ++row) {
    for (int64_t i = 0; i < flat; ++i) residual[row * flat + i] += mixed[row * width + i % width];
    Round(residual + row * flat, flat);
  }
}

void ForwardPass::Embed() {
  const int64_t width = c_.hidden_size, streams = c_.hc_streams;
  float* residual = Get(kResidual, rows_ * streams * width);
  for (int64_t row = 0; row < rows_; ++row) {
    float* first = residual + row * streams * width;
    cpu::CopyRow(weights_.embed, token(row), first);
    Round(first, width);
    for (int64_t p = 1; p < streams; ++p) std::copy_n(first, width, first + p * width);
  }
}

void ForwardPass::MakeAngles() {
  const int64_t pairs = c_.rope_dim / 2;
  float* angles = Get(kAngles, rows_ * 4 * pairs);
  ParallelFor(workers_, rows_, kGrainRows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* at = angles + row * 4 * pairs;
      const int64_t position = workspace_->positions[row];
      cpu::RopeAngles(model_.window_frequencies_.data(), pairs, position, at, at + pairs);
      cpu::RopeAngles(model_.compress_frequencies_.data(), pairs, position, at + 2 * pairs,
                      at + 3 * pairs);
    }
  });
}

void ForwardPass::ReadStreams(const HyperConnection& hc, const Vector& norm) {
  const int64_t width = c_.hidden_size, flat = c_.hc_streams * width, gate_rows = c_.hc_rows();
  const float* residual = Get(kResidual, rows_ * flat);
  float* input = Get(kInput, rows_ * width);
  float* projected = Get(kGates, rows_ * gate_rows);
  Multiply(residual, rows_, hc.fn, projected);
  const cpu::HcParams params{c_.hc_streams, c_.hc_iterations, c_.hc_eps};
  ParallelFor(workers_, rows_, kGrainRows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* u = projected + row * gate_rows;
      const float scale = cpu::RmsScale(residual + row * flat, flat, c_.norm_eps);
      for (int64_t i = 0; i < gate_rows; ++i) u[i] *= scale;
    }
    cpu::HcMakeGates(params, projected + begin * gate_rows, end - begin, hc.base.data(),
                     hc.scale.data(), hc_gates_.data() + begin);
    for (int64_t row = begin; row < end; ++row) {
      float* x = input + row * width;
      cpu::HcCollapse(residual + row * flat, hc_gates_[row].pre, c_.hc_streams, width, x);
      Round(x, width);
      cpu::RmsNorm(x, norm.data(), width, c_.norm_eps, x);
      Round(x, width);
    }
  });
}

void ForwardPass::WriteStreams() {
  const int64_t width = c_.hidden_size, flat = c_.hc_streams * width;
  float* residual = Get(kResidual, rows_ * flat);
  const float* output = Get(kOutput, rows_ * width);
  ParallelFor(workers_, rows_, kGrainRows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      cpu::HcExpand(output + row * width, hc_gates_[row], c_.hc_streams, width,
                    residual + row * flat);
      Round(residual + row * flat, flat);
    }
  });
}

// Rows that are wanted go through the head together, so that its weights are read once; then each
// row's logits are laid where its segment wants them.
void ForwardPass::Head(const HeadWeights& w) {
  const int64_t width = c_.hidden_size, flat = c_.hc_streams * width, vocab = c_.vocab_size;
  const float* residual = Get(kResidual, rows_ * flat);
  int64_t wanted = 0, wanting = 0;
  const Segment* last = nullptr;
  for (const Segment& segment : segments_) {
    if (segment.logits == nullptr) continue;
    wanted += segment.logit_rows;
    ++wanting;
    last = &segment;
  }
  if (wanting == 0) return;
  float* input = Get(kHeadInput, wanted * width);
  int64_t at = 0;
  for (size_t s = 0; s < segments_.size(); ++s) {
    const Segment& segment = segments_[s];
    if (segment.logits == nullptr) continue;
    const int64_t end = first_row_[s] + static_cast<int64_t>(segment.tokens.size());
    for (int64_t row = end - segment.logit_rows; row < end; ++row, ++at)
      CollapseForHead(w, residual + row * flat, input + at * width);
  }
  Normalise(input, wanted, w.norm);
  const Matrix& head = weights_.head;
  float* all = wanting == 1 ? last->logits : Get(kLogits, wanted * vocab);
  MultiplyOn(workers_, input, width, wanted, head, all, vocab, Mine(vocab));
  GatherColumns(all, wanted, vocab, 1);
  if (wanting == 1) return;
  const float* logits = all;
  for (const Segment& segment : segments_) {
    if (segment.logits == nullptr) continue;
    std::copy_n(logits, segment.logit_rows * vocab, segment.logits);
    logits += segment.logit_rows * vocab;
  }
}

void ForwardPass::CollapseForHead(const HeadWeights& w, const float* streams, float* out) const {
  const int64_t width = c_.hidden_size, flat = c_.hc_streams * width;
  const cpu::HcParams params{c_.hc_streams, c_.hc_iterations, c_.hc_eps};
  float u[cpu::kMaxStreams], pre[cpu::kMaxStreams];
  cpu::Matmul(streams, flat, 1, w.hc_fn, 0, c_.hc_streams, u, c_.hc_streams);
  const float scale = cpu::RmsScale(streams, flat, c_.norm_eps);
  for (int64_t p = 0; p < c_.hc_streams; ++p) u[p] *= scale;
  cpu::HcHeadGates(params, u, w.hc_base.data(), w.hc_scale, pre);
  cpu::HcCollapse(streams, pre, c_.hc_streams, width, out);
  Round(out, width);
}

}  // namespace reprise::engine
