// One pass of the model over a batch of segments. Rows are the tokens of all segments, in order; N
// of them. Internal to the engine: model.cc drives it, the sublayers are in forward_attention.cc
// and forward_experts.cc.
#pragma once

#include <cstdint>
#include <string>

#include "absl/types/span.h"
#include "engine/communicator.h"
#include "engine/model.h"
#include "kernels/cpu/compressor.h"
#include "kernels/cpu/mhc.h"

namespace reprise::engine {

// Rows of light work that are worth waking a thread for.
inline constexpr int64_t kGrainRows = 8;

class ForwardPass {
 public:
  ForwardPass(const Model& model, const ModelWeights& weights, absl::Span<const Segment> segments,
              Workers* workers, Workspace* workspace);
  void Run();
  void RunDraft();

 private:
  // Buffers by use; [N, ...] each, or as said.
  enum Buffer {
    kResidual,   // [N, P, D]
    kInput,      // [N, D] of a sublayer, normed
    kOutput,     // [N, D] of a sublayer
    kGates,      // [N, (2 + P) * P] projections of a hyper-connection
    kLowRank,    // [N, Rq]
    kQuery,      // [N, H, d]
    kKey,        // [N, d]
    kValues,     // [N, columns] of a compressor
    kTailGates,  // [N, columns]
    kIndexValues,
    kIndexGates,
    kIndexQuery,    // [N, heads, index_dim]
    kIndexWeights,  // [N, heads]
    kAttended,      // [N, H, d]
    kGrouped,       // [N, G * Ro]
    kRouterScores,  // [N, E]
    kRouteWeights,  // [N, K]
    kExpertInput,   // [N * K, D] rows by expert
    kExpertGate,    // [N * K, I]
    kExpertUp,
    kExpertOutput,  // [N * K, D]
    kAngles,        // [N, 4, rope_dim / 2]: cos and sin of the main and of the compress table
    kHeadInput,     // [wanted, D]
    kQuantised,     // [N, columns] the input of a quantised matrix
    kEmbedded,      // [N, D] of the next tokens, for the MTP block
    kMixed,         // [N, D] their projection
    kLogits,        // [wanted, V]
    kGathered,      // what ranks exchange, rank by rank
    kBuffers,
  };
  static_assert(kBuffers <= kWorkspaceBuffers);

  float* Get(Buffer buffer, int64_t floats);
  int32_t token(int64_t row) const;

  // In reference numerics: x[n] to bfloat16, in place.
  void Round(float* x, int64_t n) const;
  // The same of columns `part` of x[rows, n], on all threads.
  void RoundRows(float* x, int64_t rows, int64_t n, Share part) const;
  // What a product with `w` reads for the rows x[rows, n]: in reference numerics FP8 values where
  // `w` is quantised, in kQuantised; otherwise x itself.
  const float* InputOf(const Matrix& w, const float* x, int64_t rows, int64_t n);
  // A linear layer of the model: InputOf, product, Round; of columns `part` of y, or of all.
  void Linear(const float* x, int64_t rows, const Matrix& w, float* y, Share part);
  void Linear(const float* x, int64_t rows, const Matrix& w, float* y) {
    Linear(x, rows, w, y, {0, w.rows});
  }

  // This rank's part of n things that the ranks of the model divide.
  Share Mine(int64_t n) const;
  // Every rank has columns Mine(columns / unit) * unit of y[rows, columns]; after it, all.
  void GatherColumns(float* y, int64_t rows, int64_t columns, int64_t unit);

  // y[N, rows of w] = x . w^T for `rows` rows of x.
  void Multiply(const float* x, int64_t x_stride, int64_t rows, const Matrix& w, float* y,
                int64_t y_stride);
  void Multiply(const float* x, int64_t rows, const Matrix& w, float* y) {
    Multiply(x, w.cols, rows, w, y, w.rows);
  }
  void Normalise(float* x, int64_t rows, const Vector& weight);

  void Embed();
  // The residual streams that the MTP block starts from.
  void MixNextToken(const MtpWeights& w);
  void Layer(int64_t layer, const LayerWeights& w);
  void MakeAngles();
  // Reads the residual for a sublayer: fills kInput and the gates of hc_gates_.
  void ReadStreams(const HyperConnection& hc, const Vector& norm);
  void WriteStreams();
  void Head(const HeadWeights& w);
  void CollapseForHead(const HeadWeights& w, const float* streams, float* out) const;

  // forward_attention.cc
  void Attention(int64_t layer, const AttentionWeights& w);
  void FinishQueries(float* query, float* key);
  void FinishEntry(float* entry) const;
  void FinishIndex(float* x) const;
  void MakeIndexQueries(const AttentionWeights& w, const float* low, const float* x);
  void Compress(int64_t layer, const Compressor& w, bool index);
  void PoolSegment(int64_t layer, const Compressor& w, bool index, const Segment& segment,
                   int64_t first_row);
  void AttendRow(int64_t layer, const AttentionWeights& w, const Segment& segment,
                 int64_t first_row, int64_t row);
  void Rotate(float* x, int64_t n, int64_t row, bool inverse) const;
  void KeepWindow(int64_t layer);
  void ProjectOutput(const AttentionWeights& w);

  // forward_experts.cc
  void Experts(int64_t layer, const ExpertWeights& w);
  void Route(int64_t layer, const ExpertWeights& w);
  void RunExpert(const Expert& expert, const float* input, const float* weights, int64_t rows,
                 float* gate, float* up, float* output, Workers* workers);
  // Columns `part` of y.
  void MultiplyOn(Workers* workers, const float* x, int64_t x_stride, int64_t rows, const Matrix& w,
                  float* y, int64_t y_stride, Share part);

  const Model& model_;
  const ModelWeights& weights_;
  const ModelConfig& c_;
  const bool reference_;  // numerics
  const absl::Span<const Segment> segments_;
  Workers* const workers_;
  Workspace* const workspace_;
  Communicator* const ranks_;  // nullptr: this process has all of the model
  const Share groups_, heads_;  // of the attention's output and queries, that this rank computes
  int64_t rows_ = 0;
  std::vector<int64_t> segment_of_;              // [N]
  std::vector<int64_t> first_row_;               // [segments]
  std::vector<kernels::cpu::HcGates> hc_gates_;  // [N]
  bool compress_table_ = false;                  // of the layer that runs
};

}  // namespace reprise::engine
