// CUDA's vector types with CUDA's alignments.
#ifndef SIMT_EMU_VECTOR_TYPES_H
#define SIMT_EMU_VECTOR_TYPES_H

// Alignments of the types with two and with four elements.
#define SIMT_VECTORS(name, base, align2, align4)                                         \
  struct name##1 { base x; };                                                            \
  struct alignas(align2) name##2 { base x, y; };                                         \
  struct name##3 { base x, y, z; };                                                      \
  struct alignas(align4) name##4 { base x, y, z, w; };                                   \
  constexpr name##1 make_##name##1(base x) { return name##1 {x}; }                       \
  constexpr name##2 make_##name##2(base x, base y) { return name##2 {x, y}; }            \
  constexpr name##3 make_##name##3(base x, base y, base z) { return name##3 {x, y, z}; } \
  constexpr name##4 make_##name##4(base x, base y, base z, base w) { return name##4 {x, y, z, w}; }

SIMT_VECTORS(char, signed char, 2, 4)
SIMT_VECTORS(uchar, unsigned char, 2, 4)
SIMT_VECTORS(short, short, 4, 8)
SIMT_VECTORS(ushort, unsigned short, 4, 8)
SIMT_VECTORS(int, int, 8, 16)
SIMT_VECTORS(uint, unsigned, 8, 16)
SIMT_VECTORS(long, long, 16, 16)
SIMT_VECTORS(ulong, unsigned long, 16, 16)
SIMT_VECTORS(longlong, long long, 16, 16)
SIMT_VECTORS(ulonglong, unsigned long long, 16, 16)
SIMT_VECTORS(float, float, 8, 16)
SIMT_VECTORS(double, double, 16, 16)
#undef SIMT_VECTORS

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return uint3{x, y, z}; }
};

#endif
