// Runs the lines of a bulk file on some threads and writes one result line each, in input order.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "clients/cli/bulk_lines.h"
#include "clients/cli/output.h"
#include "sandboxd/client/sandbox_client.h"

namespace reprise::cli {

struct BulkCounts {
  uint64_t done = 0;      // lines with a result or an error
  uint64_t written = 0;   // of them in the output
  uint64_t exited_0 = 0;  // of EXITED
  uint64_t replayed = 0;  // answered from the journal
  uint64_t errors = 0;    // lines whose call could not be made
  uint64_t not_run = 0;  // errors, and calls that failed by the platform: setup, loss, interruption
  std::string first_error;           // of not_run
  std::map<int, uint64_t> outcomes;  // by sandbox.v1.Outcome
};

class BulkPool {
 public:
  // All outlive the pool. `out` is the descriptor that result lines are written to.
  BulkPool(const BulkFile* file, sandboxd::SandboxClient* client, int out)
      : file_(file), client_(client), out_(out) {}

  // Runs to the end or to Stop on `parallel` threads; `on_progress` is called now and then on this
  // one. An error is one of writing the output, or of reading the input again.
  absl::Status Run(int parallel, const std::function<void(const BulkCounts&)>& on_progress);
  // No line is begun any more. From any thread.
  void Stop();
  BulkCounts counts() const;

 private:
  void Work();
  bool Next(size_t* index);
  void Finish(size_t index, std::string line);
  void Fail(const absl::Status& status);
  // The result of one line as JSON; an error when there is none to be had now.
  absl::StatusOr<std::string> RunLine(const BulkLine& line);
  absl::StatusOr<sandboxd::SandboxClient::Finished> Execute(const BulkLine& line);

  const BulkFile* const file_;
  sandboxd::SandboxClient* const client_;
  const int out_;

  mutable absl::Mutex mutex_;
  BulkCounts counts_ ABSL_GUARDED_BY(mutex_);
  size_t next_ ABSL_GUARDED_BY(mutex_) = 0;
  int working_ ABSL_GUARDED_BY(mutex_) = 0;  // threads
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  std::map<size_t, std::string> waiting_ ABSL_GUARDED_BY(mutex_);  // results ahead of their turn
};

}  // namespace reprise::cli
