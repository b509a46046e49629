#include "sandboxd/network/steering.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/bpf.h>
#include <stddef.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <iterator>

#include "base/status_macros.h"
#include "sandboxd/network/policy.h"

namespace reprise::sandboxd::network {
namespace {

static_assert(__BYTE_ORDER == __LITTLE_ENDIAN, "the program reads addresses as little-endian");

// Places in the map of sockets.
enum Slot : int32_t { kTcp, kUdp, kDnsTcp, kDnsUdp, kSlots };

absl::StatusOr<base::UniqueFd> Bpf(int command, bpf_attr* attributes, const char* what) {
  base::UniqueFd fd(static_cast<int>(syscall(SYS_bpf, command, attributes, sizeof(*attributes))));
  if (!fd.valid()) return base::ErrnoStatus(errno, what);
  return fd;
}

uint64_t Pointer(const void* at) { return reinterpret_cast<uint64_t>(at); }

constexpr bpf_insn Insn(uint8_t code, uint8_t to, uint8_t from, int16_t offset, int32_t value) {
  return {code, to, from, offset, value};
}
constexpr bpf_insn Move(uint8_t to, int32_t value) {
  return Insn(BPF_ALU64 | BPF_MOV | BPF_K, to, 0, 0, value);
}
constexpr bpf_insn Copy(uint8_t to, uint8_t from) {
  return Insn(BPF_ALU64 | BPF_MOV | BPF_X, to, from, 0, 0);
}
constexpr bpf_insn Load(uint8_t to, size_t field) {  // of the context, which is in register 6
  return Insn(BPF_LDX | BPF_MEM | BPF_W, to, 6, static_cast<int16_t>(field), 0);
}
constexpr bpf_insn Jump(uint8_t condition, uint8_t left, int32_t value, int16_t skip) {
  return Insn(static_cast<uint8_t>(BPF_JMP32 | condition | BPF_K), left, 0, skip, value);
}
constexpr bpf_insn Go(int16_t skip) { return Insn(BPF_JMP | BPF_JA, 0, 0, skip, 0); }
constexpr bpf_insn Call(int32_t helper) { return Insn(BPF_JMP | BPF_CALL, 0, 0, 0, helper); }
constexpr bpf_insn Exit() { return Insn(BPF_JMP | BPF_EXIT, 0, 0, 0, 0); }

absl::StatusOr<base::UniqueFd> LoadProgram(int map, uint32_t own) {
  const auto own_bytes = static_cast<int32_t>(htonl(own));
  const bpf_insn program[] = {
      Copy(6, 1),
      Load(2, offsetof(bpf_sk_lookup, family)),
      Jump(BPF_JNE, 2, AF_INET, 12),  // to `stays`
      // Register 7: the slot.
      Load(2, offsetof(bpf_sk_lookup, protocol)),
      Move(7, kTcp),
      Jump(BPF_JEQ, 2, IPPROTO_TCP, 1),
      Move(7, kUdp),
      Load(2, offsetof(bpf_sk_lookup, local_port)),
      Jump(BPF_JNE, 2, kDnsPort, 2),
      Insn(BPF_ALU64 | BPF_ADD | BPF_K, 7, 0, 0, kDnsTcp - kTcp),
      Go(6),  // to `gate`
      Load(2, offsetof(bpf_sk_lookup, local_ip4)),
      Jump(BPF_JEQ, 2, own_bytes, 2),  // to `stays`
      Insn(BPF_ALU64 | BPF_AND | BPF_K, 2, 0, 0, 0xff),
      Jump(BPF_JNE, 2, 127, 2),  // to `gate`
      // stays: the kernel goes on looking as ever.
      Move(0, SK_PASS),
      Exit(),
      // gate: the socket of the slot, or nobody.
      Insn(BPF_STX | BPF_MEM | BPF_W, 10, 7, -4, 0),
      Insn(BPF_LD | BPF_DW | BPF_IMM, 1, BPF_PSEUDO_MAP_FD, 0, map),
      Insn(0, 0, 0, 0, 0),
      Copy(2, 10),
      Insn(BPF_ALU64 | BPF_ADD | BPF_K, 2, 0, 0, -4),
      Call(BPF_FUNC_map_lookup_elem),
      Insn(BPF_JMP | BPF_JNE | BPF_K, 0, 0, 2, 0),
      Move(0, SK_DROP),
      Exit(),
      Copy(7, 0),
      Copy(1, 6),
      Copy(2, 7),
      Move(3, 0),
      Call(BPF_FUNC_sk_assign),
      Copy(8, 0),
      Copy(1, 7),
      Call(BPF_FUNC_sk_release),
      Move(0, SK_PASS),
      Jump(BPF_JEQ, 8, 0, 1),
      Move(0, SK_DROP),
      Exit(),
  };
  bpf_attr load{};
  load.prog_type = BPF_PROG_TYPE_SK_LOOKUP;
  load.expected_attach_type = BPF_SK_LOOKUP;
  load.insns = Pointer(program);
  load.insn_cnt = static_cast<uint32_t>(std::size(program));
  load.license = Pointer("");
  return Bpf(
      BPF_PROG_LOAD, &load,
      "load the socket-lookup program (needs Linux 5.9 with BPF, and CAP_BPF and CAP_NET_ADMIN)");
}

}  // namespace

absl::StatusOr<base::UniqueFd> Steer(int netns, uint32_t own, const SteeredSockets& sockets) {
  // Kernels before 5.11 count maps against this limit.
  const rlimit unlimited{RLIM_INFINITY, RLIM_INFINITY};
  (void)setrlimit(RLIMIT_MEMLOCK, &unlimited);
  bpf_attr create{};
  create.map_type = BPF_MAP_TYPE_SOCKMAP;
  create.key_size = sizeof(int32_t);
  create.value_size = sizeof(uint64_t);
  create.max_entries = kSlots;
  ASSIGN_OR_RETURN(const base::UniqueFd map,
                   Bpf(BPF_MAP_CREATE, &create, "make a BPF map of sockets"));
  const int fds[kSlots] = {sockets.tcp, sockets.udp, sockets.dns_tcp, sockets.dns_udp};
  for (int32_t slot = 0; slot < kSlots; ++slot) {
    const uint64_t value = static_cast<uint64_t>(fds[slot]);
    bpf_attr put{};
    put.map_fd = static_cast<uint32_t>(map.get());
    put.key = Pointer(&slot);
    put.value = Pointer(&value);
    if (syscall(SYS_bpf, BPF_MAP_UPDATE_ELEM, &put, sizeof(put)) != 0)
      return base::ErrnoStatus(errno, "put the gate's sockets into a BPF map");
  }
  ASSIGN_OR_RETURN(const base::UniqueFd program, LoadProgram(map.get(), own));
  bpf_attr link{};
  link.link_create.prog_fd = static_cast<uint32_t>(program.get());
  link.link_create.target_fd = static_cast<uint32_t>(netns);
  link.link_create.attach_type = BPF_SK_LOOKUP;
  return Bpf(BPF_LINK_CREATE, &link, "attach the socket-lookup program to a sandbox's network");
}

}  // namespace reprise::sandboxd::network
