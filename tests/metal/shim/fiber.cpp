#include "fiber.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(__SANITIZE_ADDRESS__)
#define SHIM_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SHIM_ASAN 1
#endif
#endif
#ifdef SHIM_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

// shim_switch(save, to): pushes the registers that a function must keep, stores the stack pointer in *save and takes over `to`.
#if defined(__APPLE__)
#define SHIM_SYMBOL "_shim_switch"
#else
#define SHIM_SYMBOL "shim_switch"
#endif
extern "C" void shim_switch(void** save, void* to);
#if defined(__x86_64__)
asm(".text\n.globl " SHIM_SYMBOL "\n" SHIM_SYMBOL
    ":\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n");
static constexpr int kReturn = 6, kFrameWords = 8;  // words of a frame; 16-byte aligned where a function begins
#elif defined(__aarch64__)
asm(".text\n.globl " SHIM_SYMBOL "\n" SHIM_SYMBOL
    ":\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n  stp x25, x26, [sp, #48]\n"
    "  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n  str x9, [x0]\n  mov sp, x1\n"
    "  ldp x19, x20, [sp]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n  ldp x25, x26, [sp, #48]\n"
    "  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n  ret\n");
static constexpr int kReturn = 11, kFrameWords = 20;
#else
#error "the Metal shim needs its stack switch written for this processor"
#endif
#if defined(__linux__)
asm(".section .note.GNU-stack,\"\",%progbits\n.text\n");
#endif

namespace shim {
namespace {

constexpr size_t kStackBytes = size_t(1) << 17;

// The fiber that is being switched to, and the one that it came from.
thread_local Fiber *incoming = nullptr, *outgoing = nullptr;

}  // namespace

Fiber::Fiber(void (*entry)(void*), void* context) : bytes_(kStackBytes), entry_(entry), context_(context) {
  stack_ = static_cast<char*>(std::aligned_alloc(64, kStackBytes));
  if (!stack_) std::fputs("shim: no memory for a stack\n", stderr), std::abort();
  bottom_ = stack_;
  auto* frame = reinterpret_cast<uintptr_t*>(stack_ + kStackBytes) - kFrameWords;
  std::memset(frame, 0, kFrameWords * sizeof(*frame));
  frame[kReturn] = reinterpret_cast<uintptr_t>(&Fiber::start);
  stack_pointer_ = frame;
}

Fiber::~Fiber() { std::free(stack_); }

void Fiber::arrived([[maybe_unused]] void* fake_stack) {
#ifdef SHIM_ASAN
  // The first switch away from a thread's own stack tells where that lies.
  __sanitizer_finish_switch_fiber(fake_stack, &outgoing->bottom_, &outgoing->bytes_);
#endif
}

void Fiber::start() {
  Fiber& self = *incoming;
  self.arrived(nullptr);
  self.entry_(self.context_);
  std::abort();
}

void Fiber::switch_to(Fiber& to) {
  incoming = &to, outgoing = this;
  void* fake_stack = nullptr;
#ifdef SHIM_ASAN
  __sanitizer_start_switch_fiber(&fake_stack, to.bottom_, to.bytes_);
#endif
  shim_switch(&stack_pointer_, to.stack_pointer_);
  arrived(fake_stack);
}

}  // namespace shim
