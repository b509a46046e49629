// The attention sublayer: low-rank queries, one key-value vector a token, compressed entries with
// or without an indexer, sinks, rotation back, grouped low-rank output.
#include <algorithm>
#include <cmath>
#include <vector>

#include "engine/forward_pass.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/indexer.h"
#include "kernels/cpu/quantise.h"
#include "kernels/cpu/rmsnorm.h"
#include "kernels/cpu/rope.h"

namespace reprise::engine {
namespace {

namespace cpu = kernels::cpu;

// Scratch of one thread between rows.
struct RowScratch {
  std::vector<const float*> rows;
  std::vector<float> logits, scores, tile, keys;
  std::vector<float> entries;  // that were packed
  std::vector<int32_t> selected;
};

RowScratch& ThreadScratch() {
  thread_local RowScratch scratch;
  return scratch;
}

}  // namespace

void ForwardPass::Rotate(float* x, int64_t n, int64_t row, bool inverse) const {
  const int64_t pairs = c_.rope_dim / 2;
  const float* at =
      workspace_->buffers[kAngles].data() + row * 4 * pairs + (compress_table_ ? 2 * pairs : 0);
  cpu::ApplyRope(x, n, pairs, at, at + pairs, inverse);
}

// Norm, rotation and rounding of one query head; rotation and rounding of one key.
void ForwardPass::FinishQueries(float* query, float* key) {
  const int64_t d = c_.head_dim, heads = c_.num_heads;
  ParallelFor(workers_, rows_, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t h = heads_.begin; h < heads_.end; ++h) {
        float* q = query + (row * heads + h) * d;
        cpu::RmsNorm(q, nullptr, d, c_.norm_eps, q);
        Round(q, d);
        Rotate(q, d, row, /*inverse=*/false);
        Round(q, d);
      }
      Rotate(key + row * d, d, row, /*inverse=*/false);
      FinishEntry(key + row * d);
    }
  });
}

// A rotated key-value entry as it is stored.
void ForwardPass::FinishEntry(float* entry) const {
  if (!reference_) return;
  const int64_t plain = c_.head_dim - c_.rope_dim;
  Round(entry, c_.head_dim);
  cpu::QuantiseFp8(entry, plain, cpu::kFp8KvGroup, entry);
}

// A rotated indexer query head or key.
void ForwardPass::FinishIndex(float* x) const {
  if (!reference_) return;
  Round(x, c_.index_dim);
  cpu::Hadamard(x, c_.index_dim);
  Round(x, c_.index_dim);
  cpu::QuantiseFp4(x, c_.index_dim);
}

void ForwardPass::MakeIndexQueries(const AttentionWeights& w, const float* low, const float* x) {
  const int64_t heads = c_.index_heads, dim = c_.index_dim;
  float* query = Get(kIndexQuery, rows_ * heads * dim);
  Linear(low, rows_, w.index_wq_b, query);
  float* weights = Get(kIndexWeights, rows_ * heads);
  Linear(x, rows_, w.index_weights, weights);
  const float factor = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim * heads)));
  ParallelFor(workers_, rows_, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * heads; i < end * heads; ++i) weights[i] *= factor;
    Round(weights + begin * heads, (end - begin) * heads);
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t h = 0; h < heads; ++h) {
        float* q = query + (row * heads + h) * dim;
        Rotate(q, dim, row, /*inverse=*/false);
        FinishIndex(q);
      }
    }
  });
}

void ForwardPass::Attention(int64_t layer, const AttentionWeights& w) {
  const int64_t d = c_.head_dim, heads = c_.num_heads;
  compress_table_ = c_.kind(layer) != LayerKind::kWindow;
  const float* x = Get(kInput, rows_ * c_.hidden_size);

  float* low = Get(kLowRank, rows_ * c_.q_lora_rank);
  Linear(x, rows_, w.wq_a, low);
  Normalise(low, rows_, w.q_norm);
  float* query = Get(kQuery, rows_ * heads * d);
  Linear(low, rows_, w.wq_b, query, {heads_.begin * d, heads_.end * d});
  float* key = Get(kKey, rows_ * d);
  Linear(x, rows_, w.wkv, key);
  Normalise(key, rows_, w.kv_norm);
  FinishQueries(query, key);

  if (c_.kind(layer) != LayerKind::kWindow) Compress(layer, w.compressor, /*index=*/false);
  if (c_.kind(layer) == LayerKind::kCsa) {
    Compress(layer, w.index_compressor, /*index=*/true);
    MakeIndexQueries(w, low, x);
  }

  Get(kAttended, rows_ * heads * d);
  ParallelFor(workers_, heads_.size() == 0 ? 0 : rows_, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      AttendRow(layer, w, segments_[segment_of_[row]], first_row_[segment_of_[row]], row);
    }
  });
  KeepWindow(layer);
  ProjectOutput(w);
}

void ForwardPass::Compress(int64_t layer, const Compressor& w, bool index) {
  const int64_t columns = w.wkv.rows;
  const float* x = Get(kInput, rows_ * c_.hidden_size);
  float* values = Get(index ? kIndexValues : kValues, rows_ * columns);
  float* gates = Get(index ? kIndexGates : kTailGates, rows_ * columns);
  Multiply(x, rows_, w.wkv, values);
  Multiply(x, rows_, w.wgate, gates);
  ParallelFor(workers_, rows_, kGrainRows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* bias = w.ape.data() + workspace_->positions[row] % c_.ratio(layer) * columns;
      for (int64_t i = 0; i < columns; ++i) gates[row * columns + i] += bias[i];
    }
  });
  for (size_t s = 0; s < segments_.size(); ++s)
    PoolSegment(layer, w, index, segments_[s], first_row_[s]);
}

// Emits every block that ends inside the segment, then keeps the rows that later blocks need.
void ForwardPass::PoolSegment(int64_t layer, const Compressor& w, bool index,
                              const Segment& segment, int64_t first_row) {
  const int64_t ratio = c_.ratio(layer), columns = w.wkv.rows,
                width = static_cast<int64_t>(w.norm.size());
  const bool overlaps = c_.kind(layer) == LayerKind::kCsa;
  const int64_t start = segment.start, end = start + static_cast<int64_t>(segment.tokens.size());
  const float* new_values =
      workspace_->buffers[index ? kIndexValues : kValues].data() + first_row * columns;
  const float* new_gates =
      workspace_->buffers[index ? kIndexGates : kTailGates].data() + first_row * columns;
  auto row_of = [&](int64_t position, int64_t channel) {
    if (position >= start) {
      const int64_t at = (position - start) * columns + channel;
      return cpu::PoolRow{new_values + at, new_gates + at};
    }
    return cpu::PoolRow{segment.kv->Values(layer, position, index) + channel,
                        segment.kv->Gates(layer, position, index) + channel};
  };
  const int64_t pairs = c_.rope_dim / 2, first_block = start / ratio;
  ParallelFor(workers_, end / ratio - first_block, 1, [&](int64_t from, int64_t to) {
    std::vector<cpu::PoolRow> rows;
    std::vector<float> scratch, angles(static_cast<size_t>(2 * pairs)),
        made(static_cast<size_t>(width));
    float* entry = made.data();
    for (int64_t block = first_block + from; block < first_block + to; ++block) {
      rows.clear();
      const int64_t first = block * ratio;
      // The low half of a row belongs to the next block, the high half to its own.
      if (overlaps && block > 0) {
        for (int64_t t = first - ratio; t < first; ++t) rows.push_back(row_of(t, 0));
      }
      for (int64_t t = first; t < first + ratio; ++t)
        rows.push_back(row_of(t, overlaps ? width : 0));
      scratch.resize(rows.size() * static_cast<size_t>(width));
      cpu::PoolBlock(rows.data(), static_cast<int64_t>(rows.size()), width, scratch.data(), entry);
      Round(entry, width);
      cpu::RmsNorm(entry, w.norm.data(), width, c_.norm_eps, entry);
      Round(entry, width);
      cpu::RopeAngles(model_.compress_frequencies_.data(), pairs, first, angles.data(),
                      angles.data() + pairs);
      cpu::ApplyRope(entry, width, pairs, angles.data(), angles.data() + pairs, /*inverse=*/false);
      if (index) {
        FinishIndex(entry);
        segment.kv->WriteIndexKey(layer, block, entry);
      } else {
        FinishEntry(entry);
        segment.kv->WriteEntry(layer, block, entry);
      }
    }
  });
  const int64_t kept = segment.kv->layout().layers[layer].tail_rows;
  for (int64_t t = std::max(start, end - kept); t < end; ++t) {
    std::copy_n(new_values + (t - start) * columns, columns, segment.kv->Values(layer, t, index));
    std::copy_n(new_gates + (t - start) * columns, columns, segment.kv->Gates(layer, t, index));
  }
}

void ForwardPass::AttendRow(int64_t layer, const AttentionWeights& w, const Segment& segment,
                            int64_t first_row, int64_t row) {
  const int64_t d = c_.head_dim, heads = heads_.size(), position = workspace_->positions[row];
  const int64_t start = segment.start;
  const float* keys = workspace_->buffers[kKey].data() + first_row * d;
  RowScratch& scratch = ThreadScratch();
  scratch.rows.clear();
  for (int64_t t = std::max<int64_t>(0, position - c_.window + 1); t <= position; ++t) {
    scratch.rows.push_back(t >= start ? keys + (t - start) * d : segment.kv->Window(layer, t));
  }
  const LayerKind kind = c_.kind(layer);
  const int64_t visible = kind == LayerKind::kWindow ? 0 : (position + 1) / c_.ratio(layer);
  const bool chosen = kind == LayerKind::kCsa && visible > c_.index_topk;
  const KvLayout& layout = segment.kv->layout();
  if (layout.packed)
    scratch.entries.resize(static_cast<size_t>((chosen ? c_.index_topk : visible) * d));
  int64_t taken = 0;
  const auto take = [&](int64_t block) {
    float* room = layout.packed ? scratch.entries.data() + taken++ * d : nullptr;
    scratch.rows.push_back(segment.kv->ReadEntry(layer, block, room));
  };
  if (chosen) {
    const int64_t per_page = layout.page_tokens / c_.ratio(layer);
    if (layout.packed) scratch.keys.resize(static_cast<size_t>(per_page * c_.index_dim));
    scratch.scores.resize(static_cast<size_t>(visible));
    scratch.tile.resize(static_cast<size_t>(c_.index_heads * cpu::kIndexTile));
    const float* q = workspace_->buffers[kIndexQuery].data() + row * c_.index_heads * c_.index_dim;
    const float* weights = workspace_->buffers[kIndexWeights].data() + row * c_.index_heads;
    for (int64_t first = 0; first < visible; first += per_page) {
      const int64_t keys_here = std::min(per_page, visible - first);
      cpu::IndexScores(q, weights, c_.index_heads, c_.index_dim,
                       segment.kv->ReadIndexKeys(layer, first, keys_here, scratch.keys.data()),
                       keys_here, scratch.tile.data(), scratch.scores.data() + first, reference_);
    }
    cpu::SelectTopK(scratch.scores.data(), visible, c_.index_topk, &scratch.selected);
    for (const int32_t block : scratch.selected) take(block);
  } else {
    for (int64_t block = 0; block < visible; ++block) take(block);
  }
  const int64_t count = static_cast<int64_t>(scratch.rows.size());
  scratch.logits.resize(static_cast<size_t>(heads * (count + 1)));
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(d)));
  const int64_t first = (row * c_.num_heads + heads_.begin) * d;
  float* out = workspace_->buffers[kAttended].data() + first;
  cpu::Attend(workspace_->buffers[kQuery].data() + first, heads, d, scratch.rows.data(), count,
              w.sink.data() + heads_.begin, scale, scratch.logits.data(), out, reference_);
  Round(out, heads * d);
  for (int64_t h = 0; h < heads; ++h) Rotate(out + h * d, d, row, /*inverse=*/true);
  Round(out, heads * d);
}

void ForwardPass::KeepWindow(int64_t layer) {
  const int64_t d = c_.head_dim;
  for (size_t s = 0; s < segments_.size(); ++s) {
    const Segment& segment = segments_[s];
    const float* keys = workspace_->buffers[kKey].data() + first_row_[s] * d;
    const int64_t start = segment.start, end = start + static_cast<int64_t>(segment.tokens.size());
    for (int64_t t = std::max(start, end - segment.kv->layout().window_rows); t < end; ++t) {
      std::copy_n(keys + (t - start) * d, d, segment.kv->Window(layer, t));
    }
  }
}

void ForwardPass::ProjectOutput(const AttentionWeights& w) {
  const int64_t all = c_.num_heads * c_.head_dim, width = all / c_.o_groups,
                columns = c_.o_groups * c_.o_lora_rank;
  const float* attended = Get(kAttended, rows_ * all);
  float* grouped = Get(kGrouped, rows_ * columns);
  for (int64_t g = groups_.begin; g < groups_.end; ++g) {
    const Matrix part = w.wo_a.Rows(g * c_.o_lora_rank, c_.o_lora_rank);
    Multiply(attended + g * width, all, rows_, part, grouped + g * c_.o_lora_rank, columns);
  }
  // The reference multiplies its input unquantised by this one matrix, wo_a.
  RoundRows(grouped, rows_, columns,
            {groups_.begin * c_.o_lora_rank, groups_.end * c_.o_lora_rank});
  GatherColumns(grouped, rows_, columns, c_.o_lora_rank);
  float* output = Get(kOutput, rows_ * c_.hidden_size);
  Linear(grouped, rows_, w.wo_b, output, Mine(c_.hidden_size));
  GatherColumns(output, rows_, c_.hidden_size, 1);
}

}  // namespace reprise::engine
