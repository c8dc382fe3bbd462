# One warning set for every target of this project: spectral_warnings(target).
function(spectral_warnings target)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANG_AND_ID:CXX,GNU,Clang,AppleClang>:-Wall -Wextra -Wconversion -Wshadow -Werror>)
endfunction()
