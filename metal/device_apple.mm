// Apple's GPUs. Kernels are compiled from the source that CMake has put together (kernels_source.cpp) when a device is first opened.
#import <Foundation/Foundation.h>
#import <Metal/Metal.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "common/error.h"
#include "device.h"
#include "refusals.h"

namespace tq::metal {

extern const char* const kKernelsSource;

namespace {

std::string text(NSString* string) { return string ? std::string([string UTF8String]) : std::string("no reason given"); }
std::string reason(NSError* error) { return text(error ? [error localizedDescription] : nil); }

class AppleMemory final : public Memory {
 public:
  explicit AppleMemory(id<MTLBuffer> b) : buffer(b) {}
  void* data() const override { return [buffer contents]; }
  int64_t bytes() const override { return int64_t([buffer length]); }
  const id<MTLBuffer> buffer;
};
class ApplePipeline final : public Pipeline {
 public:
  ApplePipeline(std::string n, id<MTLComputePipelineState> s) : name(std::move(n)), state(s) {}
  const std::string name;
  const id<MTLComputePipelineState> state;
};

// Of a command buffer: the GPU begins while the rest of a pass is encoded, and the system does not take a long prompt for a hang.
constexpr int kLaunchesAtOnce = 64;

id<MTLBuffer> buffer_of(const Bound& b) { return static_cast<const AppleMemory*>(b.memory)->buffer; }

id<MTLLibrary> compile_library(id<MTLDevice> device) {
  MTLCompileOptions* options = [MTLCompileOptions new];
  options.fastMathEnabled = NO;  // infinities are used
  options.languageVersion = MTLLanguageVersion3_0;
  NSError* error = nil;
  id<MTLLibrary> library = [device newLibraryWithSource:[NSString stringWithUTF8String:kKernelsSource] options:options error:&error];
  if (!library) throw no_library(text([device name]), reason(error));
  return library;
}
// Once a process for each device: whoever asks whether a device can serve learns whether its kernels compile.
id<MTLLibrary> library_of(id<MTLDevice> device) {
  static std::mutex mutex;
  static std::map<uint64_t, id<MTLLibrary>> compiled;  // by the device's number in the system
  const std::lock_guard lock(mutex);
  const auto known = compiled.find([device registryID]);
  if (known != compiled.end()) return known->second;
  return compiled[[device registryID]] = compile_library(device);
}

class AppleDevice final : public Device {
 public:
  explicit AppleDevice(id<MTLDevice> device) : device_(device), queue_([device newCommandQueue]), library_(library_of(device)) {
    if (!queue_) throw Error(Cause::out_of_memory, name() + " gives no command queue");
  }
  ~AppleDevice() override {  // nothing may still use memory that is freed after this
    commit();
    for (id<MTLCommandBuffer> command : committed_) [command waitUntilCompleted];
  }

  std::string name() const override { return text([device_ name]); }
  Limits limits() const override {
    return {int64_t([device_ maxBufferLength]), int64_t([device_ recommendedMaxWorkingSetSize]), int64_t(getpagesize()), 0};
  }
  std::unique_ptr<Memory> allocate(int64_t bytes) override {
    @autoreleasepool {
      id<MTLBuffer> buffer = nil;
      if (bytes <= limits().buffer_bytes) buffer = [device_ newBufferWithLength:NSUInteger(bytes) options:MTLResourceStorageModeShared];
      if (!buffer) throw no_memory(bytes, name());
      std::memset([buffer contents], 0, size_t(bytes));
      return std::make_unique<AppleMemory>(buffer);
    }
  }
  std::unique_ptr<Memory> view(const void* data, int64_t bytes) override {
    @autoreleasepool {
      id<MTLBuffer> buffer = [device_ newBufferWithBytesNoCopy:const_cast<void*>(data)
                                                        length:NSUInteger(bytes)
                                                       options:MTLResourceStorageModeShared
                                                   deallocator:nil];
      return buffer ? std::make_unique<AppleMemory>(buffer) : nullptr;
    }
  }
  const Pipeline& pipeline(const std::string& kernel) override {
    std::unique_ptr<ApplePipeline>& known = pipelines_[kernel];
    if (!known) known = compile(kernel);
    return *known;
  }
  void launch(const Pipeline& pipeline, std::span<const std::byte> arguments, std::span<const Bound> buffers, Size3 groups,
              uint32_t threads) override {
    @autoreleasepool {
      const auto& kernel = static_cast<const ApplePipeline&>(pipeline);
      if (threads > [kernel.state maxTotalThreadsPerThreadgroup])
        throw Error(Cause::unsupported, "device metal: " + name() + " runs " + kernel.name + " with at most " +
                                            std::to_string([kernel.state maxTotalThreadsPerThreadgroup]) + " threads, not " +
                                            std::to_string(threads));
      begin();
      [encoder_ setComputePipelineState:kernel.state];
      [encoder_ setBytes:arguments.data() length:arguments.size() atIndex:0];
      for (size_t i = 0; i < buffers.size(); i++)
        [encoder_ setBuffer:buffer_of(buffers[i]) offset:NSUInteger(buffers[i].offset) atIndex:i + 1];
      [encoder_ dispatchThreadgroups:MTLSizeMake(groups.x, groups.y, groups.z) threadsPerThreadgroup:MTLSizeMake(threads, 1, 1)];
      if (++launches_ >= kLaunchesAtOnce) commit();
    }
  }
  void copy(Bound from, Bound to, int64_t bytes) override {
    @autoreleasepool {
      begin();
      [encoder_ endEncoding];
      encoder_ = nil;
      id<MTLBlitCommandEncoder> blit = [command_ blitCommandEncoder];
      [blit copyFromBuffer:buffer_of(from)
               sourceOffset:NSUInteger(from.offset)
                   toBuffer:buffer_of(to)
          destinationOffset:NSUInteger(to.offset)
                       size:NSUInteger(bytes)];
      [blit endEncoding];
    }
  }
  void wait() override {
    @autoreleasepool {
      commit();
      std::vector<id<MTLCommandBuffer>> all;
      all.swap(committed_);
      for (id<MTLCommandBuffer> command : all) {
        [command waitUntilCompleted];
        if ([command status] != MTLCommandBufferStatusError) continue;
        const bool memory = [[command error] code] == MTLCommandBufferErrorOutOfMemory;
        throw Error(memory ? Cause::out_of_memory : Cause::unsupported, "device metal: " + name() + ": " + reason([command error]));
      }
    }
  }

 private:
  // An encoder that carries launches out one after another.
  void begin() {
    if (!command_) command_ = [queue_ commandBuffer];
    if (command_ && !encoder_) encoder_ = [command_ computeCommandEncoder];
    if (!encoder_) throw Error(Cause::out_of_memory, "device metal: " + name() + " gives no command encoder");
  }

  // Hands over what was encoded; buffers of one queue are carried out in order.
  void commit() {
    if (!command_) return;
    if (encoder_) [encoder_ endEncoding];
    [command_ commit];
    committed_.push_back(command_);
    encoder_ = nil, command_ = nil, launches_ = 0;
  }

  std::unique_ptr<ApplePipeline> compile(const std::string& kernel) {
    @autoreleasepool {
      NSError* error = nil;
      id<MTLFunction> function = [library_ newFunctionWithName:[NSString stringWithUTF8String:kernel.c_str()]];
      if (!function) throw Error(Cause::unsupported, "device metal: no kernel " + kernel);
      id<MTLComputePipelineState> state = [device_ newComputePipelineStateWithFunction:function error:&error];
      if (!state) throw no_pipeline(kernel, name(), reason(error));
      if ([state threadExecutionWidth] != 32)
        throw Error(Cause::unsupported, "device metal: simdgroups of " + std::to_string([state threadExecutionWidth]) + " on " + name());
      return std::make_unique<ApplePipeline>(kernel, state);
    }
  }

  const id<MTLDevice> device_;
  const id<MTLCommandQueue> queue_;
  const id<MTLLibrary> library_;
  std::map<std::string, std::unique_ptr<ApplePipeline>> pipelines_;
  std::vector<id<MTLCommandBuffer>> committed_;
  id<MTLCommandBuffer> command_ = nil;
  id<MTLComputeCommandEncoder> encoder_ = nil;
  int launches_ = 0;  // of command_
};

}  // namespace

std::unique_ptr<Device> open_device(int number) {
  @autoreleasepool {
    if (@available(macOS 13.0, *)) {
      NSArray<id<MTLDevice>>* all = MTLCopyAllDevices();
      if (number < 0 || NSUInteger(number) >= [all count])
        throw Error(Cause::unsupported, "no device " + std::to_string(number) + ", this machine has " + std::to_string([all count]));
      id<MTLDevice> device = [all objectAtIndex:NSUInteger(number)];
      if (![device supportsFamily:MTLGPUFamilyApple7]) throw old_gpu(text([device name]));
      return std::make_unique<AppleDevice>(device);
    }
    throw old_system();
  }
}

}  // namespace tq::metal
