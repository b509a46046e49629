// The expert sublayer: routing by score or by token id, each chosen expert once over all its rows,
// the shared expert.
#include <algorithm>
#include <numeric>
#include <vector>

#include "engine/forward_pass.h"
#include "kernels/cpu/combine.h"
#include "kernels/cpu/quantise.h"
#include "kernels/cpu/router.h"
#include "kernels/cpu/swiglu.h"

namespace reprise::engine {

namespace cpu = kernels::cpu;

void ForwardPass::Route(int64_t layer, const ExpertWeights& w) {
  const int64_t experts = c_.num_experts, k = c_.experts_per_token;
  float* scores = Get(kRouterScores, rows_ * experts);
  float* weights = Get(kRouteWeights, rows_ * k);
  Multiply(Get(kInput, rows_ * c_.hidden_size), rows_, w.gate, scores);
  workspace_->chosen.resize(static_cast<size_t>(rows_ * k));
  ParallelFor(workers_, rows_, kGrainRows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      uint16_t* chosen = workspace_->chosen.data() + row * k;
      cpu::SqrtSoftplus(scores + row * experts, experts);
      if (w.table != nullptr) {
        for (int64_t i = 0; i < k; ++i)
          chosen[i] = static_cast<uint16_t>(w.table[token(row) * k + i]);
      } else {
        cpu::ChooseExperts(scores + row * experts, w.bias.data(), experts, k, chosen);
      }
      cpu::ExpertWeights(scores + row * experts, chosen, k, c_.routed_scale, c_.normalise_weights,
                         weights + row * k);
      const int64_t s = segment_of_[row];
      if (segments_[s].routes != nullptr) {
        std::copy_n(chosen, k,
                    segments_[s].routes + ((row - first_row_[s]) * c_.num_layers + layer) * k);
      }
    }
  });
}

// `input` is what InputOf gave for it.
void ForwardPass::RunExpert(const Expert& expert, const float* input, const float* weights,
                            int64_t rows, float* gate, float* up, float* output, Workers* workers) {
  const int64_t inner = c_.expert_width;
  MultiplyOn(workers, input, c_.hidden_size, rows, expert.w1, gate, inner, {0, inner});
  MultiplyOn(workers, input, c_.hidden_size, rows, expert.w3, up, inner, {0, inner});
  ParallelFor(workers, rows, kGrainRows, [&](int64_t begin, int64_t end) {
    Round(gate + begin * inner, (end - begin) * inner);
    Round(up + begin * inner, (end - begin) * inner);
    for (int64_t row = begin; row < end; ++row) {
      const float weight = weights == nullptr ? 1.0f : weights[row];
      float* hidden = gate + row * inner;
      cpu::SwiGlu(hidden, up + row * inner, inner, c_.swiglu_limit, weight, hidden);
      Round(hidden, inner);
      if (reference_ && Quantised(expert.w2))
        cpu::QuantiseFp8(hidden, inner, cpu::kFp8Group, hidden);
    }
  });
  MultiplyOn(workers, gate, inner, rows, expert.w2, output, c_.hidden_size,
             {0, c_.hidden_size});
}

// Slots are (row, choice) pairs, sorted by expert: each expert reads its weights once for all rows
// that chose it.
void ForwardPass::Experts(int64_t layer, const ExpertWeights& w) {
  Route(layer, w);
  const int64_t width = c_.hidden_size, inner = c_.expert_width, k = c_.experts_per_token,
                slots = rows_ * k;
  const float* input = Get(kInput, rows_ * width);
  const float* weights = Get(kRouteWeights, slots);
  const std::vector<uint16_t>& chosen = workspace_->chosen;

  std::vector<int64_t> begin(static_cast<size_t>(c_.num_experts) + 1, 0);
  for (int64_t slot = 0; slot < slots; ++slot) ++begin[chosen[slot] + 1];
  std::partial_sum(begin.begin(), begin.end(), begin.begin());
  std::vector<int64_t> place(static_cast<size_t>(slots)), next(begin.begin(), begin.end() - 1);
  std::vector<int64_t> busy;
  const Share mine = Mine(c_.num_experts);
  for (int64_t e = mine.begin; e < mine.end; ++e) {
    if (begin[e + 1] > begin[e]) busy.push_back(e);
  }
  const float* routed_input = InputOf(w.routed[0].w1, input, rows_, width);
  float* gathered = Get(kExpertInput, slots * width);
  std::vector<float> slot_weights(static_cast<size_t>(slots));
  for (int64_t slot = 0; slot < slots; ++slot) {
    place[slot] = next[chosen[slot]]++;
    slot_weights[place[slot]] = weights[slot];
  }
  ParallelFor(workers_, slots, kGrainRows, [&](int64_t from, int64_t to) {
    for (int64_t slot = from; slot < to; ++slot)
      std::copy_n(routed_input + slot / k * width, width, gathered + place[slot] * width);
  });
  // One more row range for the shared expert.
  float* gate = Get(kExpertGate, (slots + rows_) * inner);
  float* up = Get(kExpertUp, (slots + rows_) * inner);
  float* routed = Get(kExpertOutput, slots * width);
  float* output = Get(kOutput, rows_ * width);

  auto run = [&](int64_t e, Workers* workers) {
    const int64_t at = begin[e];
    RunExpert(w.routed[e], gathered + at * width, slot_weights.data() + at, begin[e + 1] - at,
              gate + at * inner, up + at * inner, routed + at * width, workers);
  };
  if (workers_ != nullptr && static_cast<int>(busy.size()) >= workers_->threads()) {
    workers_->Run(static_cast<int64_t>(busy.size()), [&](int64_t i) { run(busy[i], nullptr); });
  } else {
    for (int64_t e : busy) run(e, workers_);
  }
  if (ranks_ != nullptr) {
    std::vector<int64_t> bounds = {0};
    for (int rank = 0; rank < ranks_->size(); ++rank)
      bounds.push_back(begin[ShareOf(c_.num_experts, rank, ranks_->size()).end] * width);
    ranks_->AllGather(routed, bounds);
  }
  RunExpert(w.shared, InputOf(w.shared.w1, input, rows_, width), nullptr, rows_,
            gate + slots * inner, up + slots * inner, output, workers_);

  // The routed outputs in the order of the choice, then the shared one.
  ParallelFor(workers_, rows_, kGrainRows, [&](int64_t from, int64_t to) {
    std::vector<const float*> terms(static_cast<size_t>(k));
    for (int64_t row = from; row < to; ++row) {
      float* out = output + row * width;
      Round(out, width);
      for (int64_t j = 0; j < k; ++j) {
        float* term = routed + place[row * k + j] * width;
        Round(term, width);
        terms[j] = term;
      }
      cpu::AddRows(terms.data(), k, width, out);
      Round(out, width);
    }
  });
}

}  // namespace reprise::engine
