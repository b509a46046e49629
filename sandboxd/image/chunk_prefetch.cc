#include "sandboxd/image/chunk_prefetch.h"

namespace reprise::sandboxd {
namespace {

constexpr size_t kWaitingMax = 8192;  // two GiB of chunks

}  // namespace

ChunkPrefetch::ChunkPrefetch(storage::ChunkStore* store, int threads)
    : store_(store), queue_(kWaitingMax) {
  for (int i = 0; i < threads; ++i) {
    threads_.emplace_back([this] {
      while (std::optional<storage::ChunkId> id = queue_.Pop()) {
        if (!stopping_ && store_->Get(*id).ok()) ++fetched_;
      }
    });
  }
}

ChunkPrefetch::~ChunkPrefetch() {
  stopping_ = true;
  queue_.Close();
  for (std::thread& thread : threads_) thread.join();
}

}  // namespace reprise::sandboxd
