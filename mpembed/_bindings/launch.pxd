"""Calls of a backend's functions, made with their device set for the thread.

Other libraries in the process choose devices too: the one before is set again at the end, also
when the call fails. But not one that nobody has used: no thread has chosen it then, and to set it
would make a context there. `Device.check` turns what a call has come to into an exception.
"""

from libc.stdint cimport int32_t, int64_t

from mpembed._bindings.api cimport mpe_backend, mpe_status

cdef extern from *:
    """
    #include <type_traits>

    #include "mpembed/api.h"

    namespace mpembed_bindings {

    // One device of a backend.
    struct Target {
      const mpe_backend* kernels;
      int32_t index;
    };

    struct Outcome {
      mpe_status status;
      const char* step;  // what failed around the call; null if it is the call itself
    };

    inline Outcome enter(const Target& device, int32_t* previous) {
      const mpe_status status = device.kernels->current_device(previous);
      if (status != MPE_OK) return {status, "asking for the device"};
      if (*previous == device.index) return {MPE_OK, nullptr};
      return {device.kernels->use_device(device.index), "choosing the device"};
    }

    inline Outcome leave(const Target& device, int32_t previous) {
      int32_t in_use = 0;
      if (previous == device.index) return {MPE_OK, nullptr};
      const mpe_status status = device.kernels->device_in_use(previous, &in_use);
      if (status != MPE_OK) return {status, "asking for the device"};
      if (in_use == 0) return {MPE_OK, nullptr};
      return {device.kernels->use_device(previous), "choosing the device"};
    }

    // The function's own types decide how the arguments are converted.
    template <class T>
    struct Same {
      using type = T;
    };

    // For functions that return at once: the interpreter waits.
    template <class Result, class... Types>
    Outcome call(const Target& device, Result (*function)(Types...),
                 typename Same<Types>::type... arguments) {
      int32_t previous = 0;
      Outcome outcome = enter(device, &previous);
      if (outcome.status != MPE_OK) return outcome;
      outcome = {MPE_OK, nullptr};
      if constexpr (std::is_void_v<Result>) {
        function(arguments...);
      } else {
        outcome.status = function(arguments...);
      }
      const Outcome left = leave(device, previous);
      return outcome.status == MPE_OK ? left : outcome;
    }

    // For kernels, copies and waits: other Python threads run meanwhile.
    template <class Result, class... Types>
    Outcome launch(const Target& device, Result (*function)(Types...),
                   typename Same<Types>::type... arguments) {
      PyThreadState* thread = PyEval_SaveThread();
      const Outcome outcome = call(device, function, arguments...);
      PyEval_RestoreThread(thread);
      return outcome;
    }

    // Copies to the host and waits for it, as one function to launch.
    inline mpe_status copy_and_wait(const mpe_backend* kernels, void* to, const void* from,
                                    int64_t bytes, void* stream) {
      const mpe_status status = kernels->copy(to, from, bytes, stream);
      return status == MPE_OK ? kernels->synchronize(stream) : status;
    }

    }  // namespace mpembed_bindings
    """
    ctypedef struct Target "mpembed_bindings::Target":
        const mpe_backend* kernels
        int32_t index

    ctypedef struct Outcome "mpembed_bindings::Outcome":
        mpe_status status
        const char* step

    Outcome enter "mpembed_bindings::enter" (const Target& device, int32_t* previous) noexcept
    Outcome leave "mpembed_bindings::leave" (const Target& device, int32_t previous) noexcept
    mpe_status copy_and_wait "mpembed_bindings::copy_and_wait" (
        const mpe_backend* kernels, void* to, const void* source, int64_t nbytes,
        void* stream) noexcept nogil
    # After the device: a function of the backend's table, and its arguments.
    Outcome call "mpembed_bindings::call" (const Target& device, ...) noexcept
    Outcome launch "mpembed_bindings::launch" (const Target& device, ...) noexcept
