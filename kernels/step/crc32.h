// The checksum of a checkpoint's arrays and manifest: CRC-32 as in zlib.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace mpembed {

using Crc32Tables = std::array<std::array<uint32_t, 256>, 8>;

// tables[k][b]: the checksum of byte b and k zeros behind it.
inline const Crc32Tables& crc32_tables() {
  static const Crc32Tables tables = [] {
    Crc32Tables made{};
    for (uint32_t b = 0; b < 256; ++b) {
      uint32_t crc = b;
      for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0u);
      made[0][b] = crc;
    }
    for (size_t k = 1; k < 8; ++k) {
      for (size_t b = 0; b < 256; ++b) {
        made[k][b] = made[k - 1][b] >> 8 ^ made[0][made[k - 1][b] & 0xFF];
      }
    }
    return made;
  }();
  return tables;
}

// Continues from the checksum of what comes before, 0 at the start.
inline uint32_t crc32(uint32_t before, const void* data, size_t size) {
  const Crc32Tables& tables = crc32_tables();
  const unsigned char* p = static_cast<const unsigned char*>(data);
  uint32_t crc = ~before;
  for (; size >= 8; size -= 8, p += 8) {  // eight bytes at a time, little-endian
    uint64_t word = 0;
    std::memcpy(&word, p, 8);
    word ^= crc;
    crc = 0;
    for (int i = 0; i < 8; ++i) crc ^= tables[static_cast<size_t>(7 - i)][word >> 8 * i & 0xFF];
  }
  for (; size > 0; --size, ++p) crc = crc >> 8 ^ tables[0][(crc ^ *p) & 0xFF];
  return ~crc;
}

}  // namespace mpembed
