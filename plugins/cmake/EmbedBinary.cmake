# embed_binary(NAME FILE OUTPUT): a C++ source that holds FILE as `extern const unsigned char NAME[]`.
#
# Called by CMake at configure time it adds the build step, with FILE as a real dependency; run as a script
# (cmake -DNAME=... -DFILE=... -DOUTPUT=... -P EmbedBinary.cmake) it writes the source. A terminating zero is
# appended, so that text (PTX) can be used as a C string; NAME_size does not count it.
if(CMAKE_SCRIPT_MODE_FILE)
  file(READ "${FILE}" hex HEX)
  string(LENGTH "${hex}" digits)
  math(EXPR bytes "${digits} / 2")
  string(REGEX REPLACE "(................................................................)" "\\1\n" lines "${hex}")
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," body "${lines}")
  file(WRITE "${OUTPUT}" "// Generated from a compiled kernel: do not edit.\n#include <cstddef>\n"
    "extern const unsigned char ${NAME}[];\nextern const std::size_t ${NAME}_size;\n"
    "alignas(64) const unsigned char ${NAME}[] = {\n${body}0};\nconst std::size_t ${NAME}_size = ${bytes};\n")
  return()
endif()

set(SPECTRAL_EMBED_SCRIPT "${CMAKE_CURRENT_LIST_FILE}")

function(embed_binary name file output)
  add_custom_command(OUTPUT "${output}"
    COMMAND ${CMAKE_COMMAND} -DNAME=${name} -DFILE=${file} -DOUTPUT=${output} -P ${SPECTRAL_EMBED_SCRIPT}
    DEPENDS "${file}" "${SPECTRAL_EMBED_SCRIPT}" VERBATIM COMMENT "Embedding ${name}")
endfunction()
