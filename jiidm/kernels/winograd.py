"""3x3 convolution for training on the CPU: Winograd's F(4x4, 3x3) forward and for both gradients.

Jittor's own convolution asks oneDNN for the direct algorithm alone, which takes four times the multiplications.
"""
from jiidm.kernels import compiled
from jiidm.system.runtime import device_name, jt, onednn_flags

# below about this many positions times channels the transforms take what the multiplications save
_LEAST = 10_000
_MOST_BYTES = 2**29  # of transformed input and result, which oneDNN holds for the whole batch

_HEADER = r"""
#include <dnnl.hpp>
#include <array>
#include <map>
#include <vector>
namespace jittor {
typedef dnnl::memory::desc Desc;
typedef dnnl::memory::format_tag Tag;
enum { FORWARD, TO_INPUT, TO_WEIGHT };
enum { PASS, IMAGES, IN, OUT, HEIGHT, WIDTH, CASE };
typedef std::array<int64_t, CASE> Case;

static dnnl::engine& engine() { static dnnl::engine e(dnnl::engine::kind::cpu, 0); return e; }

// operands 0 and 1, result 2: as Jittor holds them, as the algorithm wants them
struct Plan { dnnl::primitive run; int name[3]; Desc given[3], wanted[3]; };

static Plan described(const Case& c, dnnl::algorithm algorithm) {
    const dnnl::memory::dims one = {1, 1};
    auto f32 = dnnl::memory::data_type::f32;
    dnnl::memory::dims x = {c[IMAGES], c[IN], c[HEIGHT], c[WIDTH]}, w = {c[OUT], c[IN], 3, 3},
                       y = {c[IMAGES], c[OUT], c[HEIGHT], c[WIDTH]};
    Desc ax(x, f32, Tag::any), aw(w, f32, Tag::any), ay(y, f32, Tag::any);
    Desc px(x, f32, Tag::nchw), pw(w, f32, Tag::oihw), py(y, f32, Tag::nchw);
    dnnl::convolution_forward::primitive_desc forward(
        {dnnl::prop_kind::forward_training, algorithm, ax, aw, ay, one, one, one}, engine());
    if (c[PASS] == FORWARD)
        return {dnnl::convolution_forward(forward), {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST}, {px, pw, py},
                {forward.src_desc(), forward.weights_desc(), forward.dst_desc()}};
    if (c[PASS] == TO_INPUT) {
        dnnl::convolution_backward_data::primitive_desc pd({algorithm, ax, aw, ay, one, one, one}, engine(), forward);
        return {dnnl::convolution_backward_data(pd), {DNNL_ARG_DIFF_DST, DNNL_ARG_WEIGHTS, DNNL_ARG_DIFF_SRC},
                {py, pw, px}, {pd.diff_dst_desc(), pd.weights_desc(), pd.diff_src_desc()}};
    }
    dnnl::convolution_backward_weights::primitive_desc pd({algorithm, ax, aw, ay, one, one, one}, engine(), forward);
    return {dnnl::convolution_backward_weights(pd), {DNNL_ARG_SRC, DNNL_ARG_DIFF_DST, DNNL_ARG_DIFF_WEIGHTS},
            {px, py, pw}, {pd.src_desc(), pd.diff_dst_desc(), pd.diff_weights_desc()}};
}

static Plan& plan(const Case& c) {
    static std::map<Case, Plan> plans;
    auto found = plans.find(c);
    if (found == plans.end()) {
        try {
            found = plans.emplace(c, described(c, dnnl::algorithm::convolution_winograd)).first;
        } catch (const dnnl::error&) {  // a processor without AVX-512
            found = plans.emplace(c, described(c, dnnl::algorithm::convolution_direct)).first;
        }
    }
    return found->second;
}

// room for an operand in another layout, kept: fresh pages cost as much as the re-ordering
static dnnl::memory room(int i, const Desc& desc) {
    static std::vector<dnnl::memory> kept(3);
    if (!kept[i] || kept[i].get_desc().get_size() < desc.get_size()) kept[i] = dnnl::memory(desc, engine());
    return dnnl::memory(desc, engine(), kept[i].get_data_handle());
}
}
"""

_RUN = r"""
    @alias(a, in0) @alias(b, in1) @alias(result, out0)
    Plan& p = plan({(int64_t)data["pass"], (int64_t)data["images"], (int64_t)data["in"], (int64_t)data["out"],
                    (int64_t)data["height"], (int64_t)data["width"]});
    dnnl::stream stream(engine());
    float* pointers[3] = {a_p, b_p, result_p};
    dnnl::memory given[3], wanted[3];
    for (int i = 0; i < 3; i++) {
        given[i] = wanted[i] = dnnl::memory(p.given[i], engine(), pointers[i]);
        if (p.wanted[i] != p.given[i]) {
            wanted[i] = room(i, p.wanted[i]);
            if (i < 2) dnnl::reorder(given[i], wanted[i]).execute(stream, given[i], wanted[i]);
        }
    }
    p.run.execute(stream, {{p.name[0], wanted[0]}, {p.name[1], wanted[1]}, {p.name[2], wanted[2]}});
    if (p.wanted[2] != p.given[2]) dnnl::reorder(wanted[2], given[2]).execute(stream, wanted[2], given[2]);
    stream.wait();
"""
_FORWARD, _TO_INPUT, _TO_WEIGHT = range(3)


def pays(x, weight):
    """Whether `winograd` takes the 3x3 convolution of x (N, C, H, W), and is faster than Jittor's convolution."""
    images, channels, height, width = x.shape
    out, _, *kernel = weight.shape
    positions = height * width
    transformed = 4 * 2.25 * images * (channels + out) * positions
    return (
        compiled() and device_name() == "cpu" and kernel == [3, 3] and x.dtype == weight.dtype == "float32"
        and positions * min(channels, out) >= _LEAST and transformed <= _MOST_BYTES and onednn_flags() is not None
    )


def winograd(x, weight):
    """3x3 convolution with one row and column of zeros around the input; differentiable in both arguments.

    Args:
        x: N, C, H, W.
        weight: C_out, C, 3, 3.

    Returns:
        N, C_out, H, W.
    """
    return _Winograd.apply(x, weight)


class _Winograd(jt.Function):
    def execute(self, x, weight):
        self.saved = x, weight
        images, channels, height, width = x.shape
        self.case = {"images": images, "in": channels, "out": weight.shape[0], "height": height, "width": width}
        return self._run(_FORWARD, (images, weight.shape[0], height, width), x, weight)

    def grad(self, dy):
        x, weight = self.saved
        return self._run(_TO_INPUT, x.shape, dy, weight), self._run(_TO_WEIGHT, weight.shape, x, dy)

    def _run(self, which, shape, a, b):
        with jt.flag_scope(compile_options=onednn_flags()):
            return jt.code(shape, "float32", [a, b], cpu_header=_HEADER, cpu_src=_RUN,
                           data={"pass": which, **self.case})
