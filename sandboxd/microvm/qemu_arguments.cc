#include "sandboxd/microvm/qemu_arguments.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <initializer_list>
#include <nlohmann/json.hpp>

#include "base/status_macros.h"

namespace reprise::sandboxd::microvm {
namespace {

using nlohmann::json;

constexpr char kFilter[] =
    "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
constexpr char kMicrovmMachine[] = "microvm,pcie=off,usb=off,suppress-vmdesc=on";
constexpr char kQ35Machine[] = "q35,usb=off,vmport=off,sata=off,smbus=off,suppress-vmdesc=on";

// The kernel's own tests of its ciphers would take a third of an emulated boot.
constexpr char kKernelArguments[] =
    "panic=-1 reboot=t cryptomgr.notests 8250.nr_uarts=1 random.trust_cpu=on";
constexpr char kMicrovmConsole[] = "console=ttyS0 quiet loglevel=4";
// On the screen too; ours is the last.
constexpr char kQ35Console[] = "console=tty0 console=ttyS0";

class Builder {
 public:
  Builder(const VmConfig& config, const QemuStreams& streams, const QemuFile& file)
      : config_(config),
        streams_(streams),
        file_(file),
        mode_(static_cast<Mode>(config.mode)),
        kvm_(config.accelerator == "kvm"),
        q35_(static_cast<Board>(config.board) == Board::kQ35) {}

  absl::StatusOr<std::vector<std::string>> Build() {
    AddMachine();
    AddStreams();
    if (config_.disk.empty()) {
      RETURN_IF_ERROR(AddKernel());
      if (!config_.image.empty()) RETURN_IF_ERROR(AddReadOnly("image", config_.image));
    } else {
      RETURN_IF_ERROR(AddDisk());
      if (!config_.seed.empty()) RETURN_IF_ERROR(AddReadOnly("seed", config_.seed));
    }
    if (q35_) Add({"-device", "VGA,vgamem_mb=16", "-device", "virtio-tablet-pci"});
    // Paused until it is told to go on, whatever it did when it was saved.
    if (FromTemplate(mode_)) Add({"-incoming", "defer", "-S"});
    return std::move(out_);
  }

 private:
  void Add(std::initializer_list<std::string> arguments) {
    out_.insert(out_.end(), arguments.begin(), arguments.end());
  }
  void AddBlock(const json& options) { Add({"-blockdev", options.dump()}); }

  // Devices of one kind have a name for each bus.
  std::string Virtio(const char* kind) const {
    return fmt::format("virtio-{}-{}", kind, q35_ ? "pci" : "device");
  }

  void AddMachine() {
    const bool shared = mode_ == Mode::kTemplate, in_file = shared || FromTemplate(mode_);
    std::string machine = q35_ ? kQ35Machine : kMicrovmMachine;
    if (in_file) machine += ",memory-backend=ram";
    Add({config_.program, "-M", machine, "-accel", kvm_ ? "kvm" : "tcg,tb-size=128", "-cpu",
         kvm_ ? "host" : "max", "-m", fmt::format("{}M", config_.memory_mib), "-smp",
         std::to_string(config_.cpus), "-nodefaults", "-no-user-config", "-display", "none",
         "-no-reboot", "-sandbox", kFilter,
         // Devices that are saved alone have no configuration section; so none has.
         "-global", "migration.send-configuration=off"});
    if (!in_file) return;
    Add({"-object", fmt::format("memory-backend-file,id=ram,mem-path=/proc/self/fd/{},size={}M,"
                                "share={}",
                                kRamFd, config_.memory_mib, shared ? "on" : "off")});
  }

  void AddStreams() {
    Add({"-chardev", fmt::format("socket,id=console,fd={}", streams_.console), "-serial",
         "chardev:console", "-device", Virtio("serial"), "-chardev",
         fmt::format("socket,id=port,fd={}", streams_.port), "-device",
         fmt::format("virtserialport,chardev=port,name={}", kPortName), "-chardev",
         fmt::format("socket,id=monitor,fd={}", streams_.monitor), "-mon",
         "chardev=monitor,mode=control"});
  }

  absl::Status AddKernel() {
    ASSIGN_OR_RETURN(const std::string kernel, file_(config_.kernel, O_RDONLY));
    ASSIGN_OR_RETURN(const std::string initramfs, file_(config_.initramfs, O_RDONLY));
    std::string words =
        fmt::format("{} {}", q35_ ? kQ35Console : kMicrovmConsole, kKernelArguments);
    if (!kvm_) words += fmt::format(" tsc_early_khz={} tsc=reliable", config_.tsc_khz);
    Add({"-kernel", kernel, "-initrd", initramfs, "-append", words});
    return absl::OkStatus();
  }

  absl::Status AddReadOnly(const char* name, const std::string& path) {
    ASSIGN_OR_RETURN(const std::string opened, file_(path, O_RDONLY));
    AddBlock({{"driver", "file"},
              {"node-name", name},
              {"read-only", true},
              {"locking", "off"},
              {"filename", opened}});
    Add({"-device", fmt::format("{},drive={}", Virtio("blk"), name)});
    return absl::OkStatus();
  }

  // What lies below what is named here: whatever the base says of other files is not looked at.
  absl::Status AddDisk() {
    ASSIGN_OR_RETURN(const std::string base, file_(config_.base, O_RDONLY));
    ASSIGN_OR_RETURN(const std::string disk, file_(config_.disk, O_RDWR));
    AddBlock({{"driver", "file"},
              {"node-name", "base-file"},
              {"read-only", true},
              {"locking", "off"},
              {"filename", base}});
    json format = {{"driver", config_.base_format},
                   {"node-name", "base"},
                   {"read-only", true},
                   {"file", "base-file"}};
    if (config_.base_format == "qcow2") format["backing"] = nullptr;
    AddBlock(format);
    AddBlock({{"driver", "file"}, {"node-name", "disk-file"}, {"filename", disk}});
    AddBlock({{"driver", "qcow2"},
              {"node-name", "disk"},
              {"file", "disk-file"},
              {"backing", "base"},
              {"discard", "unmap"}});
    Add({"-device", fmt::format("{},drive=disk,bootindex=0", Virtio("blk"))});
    return absl::OkStatus();
  }

  const VmConfig& config_;
  const QemuStreams& streams_;
  const QemuFile& file_;
  const Mode mode_;
  const bool kvm_, q35_;
  std::vector<std::string> out_;
};

}  // namespace

absl::StatusOr<std::vector<std::string>> QemuArguments(const VmConfig& config,
                                                       const QemuStreams& streams,
                                                       const QemuFile& file) {
  return Builder(config, streams, file).Build();
}

}  // namespace reprise::sandboxd::microvm
