// CRC-32C (Castagnoli), the checksum of every record on disk. Uses the SSE4.2 instruction where the CPU has it.
#pragma once

#include <cstdint>
#include <string_view>

namespace reprise::base {

// crc of `data` continued from `seed` (0 for a fresh checksum).
uint32_t Crc32c(std::string_view data, uint32_t seed = 0);

}  // namespace reprise::base
