// A trajectory log on a real store in a scratch directory, for tests.
#pragma once

#include <memory>

#include <gtest/gtest.h>

#include "base/fd.h"
#include "replay/trajectory_log.h"
#include "storage/store.h"

namespace reprise::rollout {

class ScratchLog {
 public:
  ScratchLog() : scratch_("log") {
    storage::StoreOptions options;
    options.path = scratch_.path() + "/journal";
    options.families = replay::TrajectoryLogFamilies();
    options.durability = storage::Durability::kNone;
    auto store = storage::Store::Open(options);
    EXPECT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    auto log = replay::TrajectoryLog::Open(store_.get(), scratch_.path() + "/archive");
    EXPECT_TRUE(log.ok()) << log.status();
    log_ = *std::move(log);
  }
  replay::TrajectoryLog* get() { return log_.get(); }
  replay::TrajectoryLog* operator->() { return log_.get(); }

 private:
  base::ScratchDir scratch_;
  std::unique_ptr<storage::Store> store_;
  std::unique_ptr<replay::TrajectoryLog> log_;
};

}  // namespace reprise::rollout
