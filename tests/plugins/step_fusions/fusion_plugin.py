"""The fused operators as TensorRT calls them, behind the harness of the attention's plugin, on a CPU."""

import ctypes

from operator_plugin_call import DATA_TYPES, MOST_DIMS, PluginLibrary, RefusedError

from lineahead.plugins.step_fusions.schema import FUSIONS, OWN_FIELDS


class FusionLibrary(PluginLibrary):
    """The same library and harness, with another operator's creator."""

    def choose(self, name):
        """Work with the creator of operator `name`."""
        assert self.c.choose(name.encode(), b"1") == 0, name
        self.fusion = FUSIONS[name]

    def kinds(self):
        """Types of the chosen operator's fields, by name."""
        return self.fusion.fields | OWN_FIELDS

    def described(self, ports):
        """Dimensions, ranks and types of the operands, in C."""
        ports = [ports[name] for name in self.fusion.inputs]
        dims = (ctypes.c_int64 * (len(ports) * MOST_DIMS))()
        for i, x in enumerate(ports):
            dims[i * MOST_DIMS : i * MOST_DIMS + x.ndim] = list(x.shape)
        kinds = [DATA_TYPES[str(x.dtype).removeprefix("torch.")] for x in ports]
        ranks = (ctypes.c_int * len(ports))(*(x.ndim for x in ports))
        return dims, ranks, (ctypes.c_int * len(ports))(*kinds), len(ports)

    def output_shapes(self, plugin, ports):
        """Shapes of the outputs, from the builder's expressions."""
        dims, ranks, _, inputs = self.described(ports)
        count = len(self.fusion.outputs)
        found, axes = (ctypes.c_int64 * (count * MOST_DIMS))(), (ctypes.c_int * count)()
        if self.c.output_shapes(plugin, dims, ranks, inputs, found, axes, count):
            raise RefusedError(self.messages())
        shapes = (tuple(found[i * MOST_DIMS : i * MOST_DIMS + axes[i]]) for i in range(count))
        return dict(zip(self.fusion.outputs, shapes, strict=True))

    def output_types(self, plugin, types):
        """Types of the outputs, from those of the inputs."""
        found = (ctypes.c_int * len(self.fusion.outputs))()
        given = (ctypes.c_int * len(types))(*types)
        assert self.c.output_types(plugin, given, len(types), found, len(found)) == 0
        return list(found)

    def run(self, plugin, ports, out):
        """One call."""
        described = self.described(ports)
        if self.c.announce(plugin, *described):
            raise RefusedError(self.messages())
        assert self.c.workspace_size(plugin, *described) == 0
        inputs = (ctypes.c_void_p * len(ports))(*(ports[name].data_ptr() for name in self.fusion.inputs))
        outputs = (ctypes.c_void_p * len(out))(*(out[name].data_ptr() for name in self.fusion.outputs))
        if self.c.enqueue(plugin, *described, inputs, outputs, None):
            raise RefusedError(self.messages())
