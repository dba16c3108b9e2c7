# Optimizers of the user's own; part of kernels.pyx.

ctypedef mpe_status (*LoadOptimizer)(
    int32_t, const mpe_own_optimizer*, uint32_t, int32_t, const void*) noexcept nogil


cdef class OwnOptimizer:
    """An optimizer that is registered under a number, for good.

    Parameters
    ----------
    name : str
        None that is registered.
    states : list of (str, int, float)
        Name, shape and initial value of each.
    parameters : list of str
        The names of its own.
    coefficients, step : int
        Addresses of the CPU's functions; 0: it has none.
    """

    cdef mpe_own_optimizer fields
    cdef list texts  # which the fields point into
    cdef readonly int number

    def __init__(self, str name, list states, list parameters, uintptr_t coefficients,
                 uintptr_t step):
        cdef int32_t number = 0
        if len(states) > <int>MPE_MAX_STATES or len(parameters) > <int>MPE_MAX_PARAMETERS:
            raise ValueError(f"optimizer {name!r} has too many states or parameters")
        self.texts = []
        self.fields.name = self.text(name)
        self.fields.num_states, self.fields.num_parameters = len(states), len(parameters)
        for i, (state, shape, initial) in enumerate(states):
            self.fields.state_names[i] = self.text(state)
            self.fields.state_shapes[i], self.fields.state_initials[i] = shape, initial
        for i, parameter in enumerate(parameters):
            self.fields.parameters[i] = self.text(parameter)
        self.fields.coefficients = (
            <void (*)(const double*, int32_t, uint64_t, float*) noexcept nogil>
            <void*>coefficients)
        self.fields.step = <void (*)(const void*, void*) noexcept nogil><void*>step
        status = mpe_register_optimizer(&self.fields, &number)
        if status == MPE_ERR_MEMORY:
            raise MemoryError("registering an optimizer")
        if status != MPE_OK:
            raise ValueError(
                f"optimizer {name!r} cannot be registered: its name is taken, its states are more "
                f"than kernels bear, or there are {<int>MPE_MAX_OWN_OPTIMIZERS} already")
        self.number = number

    cdef const char* text(self, str given) except NULL:
        cdef bytes encoded = given.encode()
        self.texts.append(encoded)
        return encoded

    def load(self, Device device, loader, uint32_t formats, bint long_rows, bytes code):
        """Give a device the kernels for groups with just these formats, a bit each.

        `loader` is the capsule ``LOAD_OPTIMIZER`` of the CUDA kernels.
        """
        cdef LoadOptimizer load = <LoadOptimizer>PyCapsule_GetPointer(
            loader, "mpembed.load_optimizer")
        device.check(
            launch(device.target, load, self.number, &self.fields, formats, <int32_t>long_rows,
                   <const char*>code),
            f"loading optimizer {self.fields.name.decode()!r}")
