// Self-tests of the SIMT emulation: atomics, waits through memory, cache hints, bit intrinsics.
#include <math.h>

#include "checks.h"

namespace {

struct Totals {
  int sum, least, greatest, bits, exchanged;
  unsigned count, wrapped, all, any, odd, down;
  unsigned long long wide, claimed;
  long long low;
  float f;
  double d;
};

__global__ void atomics(Totals* t, unsigned char* seen) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const unsigned u = static_cast<unsigned>(i);
  atomicAdd(&t->sum, i);
  atomicSub(&t->sum, 1);
  atomicMin(&t->least, i - 5);
  atomicMax(&t->greatest, i);
  atomicOr(&t->bits, i);
  atomicExch(&t->exchanged, 77);
  seen[atomicAdd(&t->count, 1u)] = 1;
  atomicInc(&t->wrapped, 9u);
  atomicDec(&t->down, 9u);
  atomicAnd(&t->all, ~(u & 8u));
  atomicOr(&t->any, 1u << (u & 31u));
  atomicXor(&t->odd, u);
  atomicAdd(&t->wide, 1ull << 40);
  atomicMin(&t->low, static_cast<long long>(-i) * (1ll << 33));
  atomicAdd(&t->f, 0.5f);
  atomicAdd(&t->d, 0.25);
  unsigned long long old = __ldcg(&t->claimed);
  for (unsigned long long expected = ~old; old != expected;) {
    expected = old;
    old = atomicCAS(&t->claimed, expected, expected + 3);
  }
}

CHECK(atomic) {
  const int n = 1000;
  Array<Totals> totals(std::vector<Totals>(1));
  Array<unsigned char> seen(1000);
  EXPECT(start(atomics, 10, 100, totals.data(), seen.data()) == cudaSuccess);
  const Totals t = totals.get()[0];
  EXPECT(t.sum == n * (n - 1) / 2 - n && t.least == -5 && t.greatest == n - 1 && t.bits == 1023);
  EXPECT(t.exchanged == 77 && t.count == 1000 && t.wrapped == 0 && t.down == 0);
  EXPECT(t.all == 0 && t.any == kAll && t.odd == 0 && t.wide == 1000ull << 40);
  EXPECT(t.low == -(999ll << 33) && t.f == 500.0f && t.d == 250.0 && t.claimed == 3000);
  for (unsigned char s : seen.get()) EXPECT(s == 1);
}

// Threads that wait for others through memory must let them run.
__global__ void relay(int* flag) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  while (__ldcg(flag) != i) __nanosleep(10);
  __threadfence();
  atomicExch(flag, i + 1);
}

CHECK(relay) {
  Array<int> flag(1);
  EXPECT(start(relay, 2, 40, flag.data()) == cudaSuccess);
  EXPECT(flag.get()[0] == 80);
}

__global__ void hints(const uint4* in, uint4* out, unsigned* alone) {
  const unsigned t = threadIdx.x;
  uint4 v = __ldg(in + t);
  v.x += __ldcg(in + t).x + __ldcs(in + t).y;
  if (t % 2 == 0) {
    __stcs(out + t, v);
  } else {
    __stcg(out + t, v);
  }
  alone[t] = __activemask() >> (t & 31u) & 1u;
}

CHECK(hint) {
  Array<uint4> in(std::vector<uint4>(40, make_uint4(1, 2, 3, 4))), out(40);
  Array<unsigned> alone(40);
  EXPECT(start(hints, 1, 40, in.data(), out.data(), alone.data()) == cudaSuccess);
  for (const uint4& v : out.get()) EXPECT(v.x == 4 && v.y == 2 && v.z == 3 && v.w == 4);
  for (unsigned a : alone.get()) EXPECT(a == 1);
}

__global__ void intrinsics(unsigned* good) {
  const unsigned x = 0x80F01234u, y = 0x9ABCDEF7u;
  bool ok = __popc(x) == 10 && __popcll(~0ull) == 64 && __ffs(0) == 0 && __ffs(8) == 4;
  ok = ok && __ffsll(1ll << 40) == 41 && __clz(0) == 32 && __clz(1) == 31 && __clzll(0) == 64;
  ok = ok && __brev(0x80000001u) == 0x80000001u && __brev(6u) == 0x60000000u;
  ok = ok && __brevll(1ull) == 1ull << 63 && __umulhi(x, y) == 0x4DEF8B8Du;
  ok = ok && __mulhi(-5, 7) == -1 && __umul64hi(1ull << 63, 6) == 3 && __mul64hi(-1ll, 4) == -1;
  ok = ok && __funnelshift_l(x, y, 8) == 0xBCDEF780u && __funnelshift_r(x, y, 8) == 0xF780F012u;
  ok = ok && __funnelshift_l(x, y, 32) == y && __funnelshift_lc(x, y, 40) == x;
  ok = ok && __byte_perm(x, y, 0x7410) == 0x9AF71234u && __byte_perm(x, y, 0x3B8C) == 0x80FF00FFu;
  ok = ok && __float_as_uint(1.0f) == 0x3F800000u && __int_as_float(0x40000000) == 2.0f;
  ok = ok && __double_as_longlong(1.0) == 0x3FF0000000000000ll;
  ok = ok && __fmaf_rn(3.0f, 5.0f, 1.0f) == 16.0f && __frcp_rn(4.0f) == 0.25f;
  ok = ok && __fadd_rn(16777216.0f, 1.0f) == 16777216.0f && __fsqrt_rn(9.0f) == 3.0f;
  ok = ok && __float2int_rn(2.5f) == 2 && __float2int_rz(-2.7f) == -2;
  ok = ok && __float2int_rn(3e9f) == 0x7FFFFFFF && __float2uint_rz(-1.0f) == 0u;
  ok = ok && __float2int_rz(__int_as_float(0x7FC00000)) == 0 &&
       __int2float_rn(16777217) == 16777216.0f;
  ok = ok && min(3, 4) == 3 && max(3u, 4u) == 4u && min(2.0f, __int_as_float(0x7FC00000)) == 2.0f;
  ok = ok && sizeof(float4) == 16 && alignof(float4) == 16 && alignof(longlong2) == 16;
  ok = ok && alignof(uint2) == 8 && alignof(uchar4) == 4 && alignof(int3) == 4 &&
       alignof(short4) == 8;
  *good = ok ? 1u : 0u;
}

CHECK(intrinsic) {
  Array<unsigned> good(1);
  EXPECT(start(intrinsics, 1, 1, good.data()) == cudaSuccess);
  EXPECT(good.get()[0] == 1);
}

}  // namespace
