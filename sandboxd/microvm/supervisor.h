// Owns one machine: brings it up, offers the guest's agent on a socket as a container's agent
// offers itself, takes the daemon's requests, and says why the machine ended. Lives on when the
// daemon dies. One thread, one poll loop.
#pragma once

#include <list>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/fd.h"
#include "sandboxd/microvm/mux.h"
#include "sandboxd/microvm/vm_config.h"
#include "sandboxd/microvm/vmm.h"

namespace reprise::sandboxd::microvm {

class Supervisor {
 public:
  // The working directory is the box. `ready` takes the steps and how the start went.
  Supervisor(VmConfig config, std::unique_ptr<Vmm> vmm, base::UniqueFd ready)
      : config_(std::move(config)), vmm_(std::move(vmm)), ready_(std::move(ready)) {}

  // Until the machine has ended, or is not needed any more. Not OK: why it ended by itself.
  absl::Status Run();

 private:
  struct Request {
    base::UniqueFd fd;
    agent::FrameReader in;
  };

  absl::Status Start();
  absl::Status Serve();
  // Offers the guest's agent; the daemon's requests are taken from ListenControl on.
  absl::Status Listen();
  absl::Status ListenControl();
  // The rest of the start of a machine from a template.
  absl::Status BecomeSandbox();
  absl::Status Adopt(const Adoption& adoption);
  bool waiting() const { return config_.ready != 0 && !agents_.valid(); }
  // Waits for `wanted` from the guest; every other message but Failed is wrong then.
  absl::Status Expect(GuestMessage wanted);
  absl::Status StepMux();
  void SendRenew(bool clock_only);
  bool TakeMessage(GuestMessage type, const std::string& payload);
  void Accept();
  void TakeRequest(Request& request);
  std::string Answer(VmRequest type, const std::string& payload);
  absl::Status Screenshot(const std::string& file);
  void Stop();
  bool own_system() const { return !config_.disk.empty(); }
  absl::Status SetPaused(bool paused);
  // Nothing is on its way between the two sides of the port when it returns; until GoOn.
  // UNAVAILABLE when the guest does not answer in time; it goes on then.
  absl::Status Hold();
  void GoOn();
  // Of a paused and held machine: it lies in the box, and its process is gone; and back.
  absl::Status Suspend();
  absl::Status Wake();
  std::string ConsoleText() const;
  absl::Status Snapshot(const SnapshotRequest& request);
  absl::Status Ended(absl::Status because);
  void Step(const char* name);
  void Tell(const std::string& line);

  VmConfig config_;  // changed by Adopt
  const std::unique_ptr<Vmm> vmm_;
  base::UniqueFd ready_;
  std::unique_ptr<Mux> mux_;
  base::Stopwatch watch_;
  int64_t deadline_us_ = 0;  // until it is ready

  std::vector<GuestMessage> messages_;  // that came and were not looked at
  std::string failure_;                 // the guest's Failed
  agent::Fd agents_, controls_;         // listening
  std::list<Request> requests_;
  int renewals_ = 0;      // that the guest has not answered
  int holds_ = 0;         // that the guest has not answered
  bool holding_ = false;  // Hold waits
  bool held_ = false;     // the port is quiet
  bool suspended_ = false;
  bool paused_ = false, stop_ = false;
  bool agent_ = false;       // the guest's agent listens
  int64_t stop_at_us_ = -1;  // the guest was asked to end until then
};

}  // namespace reprise::sandboxd::microvm
