// Texts to vectors with a bundle's OpenVINO variant: one text a line in, one vector a line out.
//
//   embed MODEL.xml PRECISION TOKENIZER.xml TOKENIZERS_LIBRARY TEXTS.txt
//
// PRECISION is INFERENCE_PRECISION_HINT of the variant's settings in manifest.json. Without it OpenVINO computes fp32
// models in bf16 wherever the CPU can.

#include <cstdio>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <openvino/openvino.hpp>

static std::vector<std::string> lines_of(const std::string& path) {
    std::ifstream file(path);
    if (!file)
        throw std::runtime_error("cannot read " + path);
    std::vector<std::string> lines;
    for (std::string line; std::getline(file, line);)
        lines.push_back(line);
    return lines;
}

// OpenVINO's messages begin with the places in its own source where they were thrown; the last line says what happened.
static std::string last_line_of(std::string text) {
    text.erase(text.find_last_not_of(" \n") + 1);
    return text.substr(text.find_last_of('\n') + 1);
}

static void embed(char** arguments) {
    const std::string model = arguments[1], precision = arguments[2], tokenizer_model = arguments[3];
    for (int i : {1, 3, 4, 5})
        if (!std::ifstream(arguments[i]))
            throw std::runtime_error("cannot read " + std::string(arguments[i]));
    ov::Core core;
    core.add_extension(std::string(arguments[4]));  // the operators of the tokenizer
    auto tokenizer = core.compile_model(tokenizer_model, "CPU").create_infer_request();
    auto compiled = core.compile_model(model, "CPU", {{"INFERENCE_PRECISION_HINT", precision}});
    auto encoder = compiled.create_infer_request();

    for (std::string& text : lines_of(arguments[5])) {
        tokenizer.set_input_tensor(ov::Tensor(ov::element::string, ov::Shape{1}, &text));
        tokenizer.infer();
        for (const auto& input : compiled.inputs())  // input_ids, attention_mask, …: both models use the same names
            encoder.set_tensor(input, tokenizer.get_tensor(input.get_any_name()));
        encoder.infer();
        const ov::Tensor vector = encoder.get_output_tensor(0);
        const float* values = vector.data<float>();
        for (size_t i = 0; i < vector.get_size(); ++i)
            std::printf(i ? " %.9g" : "%.9g", values[i]);
        std::printf("\n");
    }
}

int main(int count, char** arguments) {
    if (count != 6) {
        std::fprintf(stderr, "usage: embed MODEL.xml PRECISION TOKENIZER.xml TOKENIZERS_LIBRARY TEXTS.txt\n");
        return 2;
    }
    try {
        embed(arguments);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", last_line_of(error.what()).c_str());
        return 1;
    }
}
