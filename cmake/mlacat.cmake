# Options, warnings and the one helper that makes a layer.

option(MLACAT_TESTS "build the tests" ON)
option(MLACAT_WERROR "warnings are errors" ON)
set(MLACAT_SANITIZE "" CACHE STRING "sanitizers, as for -fsanitize= (address,undefined or thread)")

find_package(PkgConfig REQUIRED)
pkg_check_modules(LIBUV REQUIRED IMPORTED_TARGET libuv)
pkg_check_modules(PROTOBUF_C REQUIRED IMPORTED_TARGET libprotobuf-c)
pkg_check_modules(INIH REQUIRED IMPORTED_TARGET inih)
pkg_check_modules(JANSSON REQUIRED IMPORTED_TARGET jansson)
find_program(PROTOC_C protoc-c REQUIRED)

# Optimised builds keep their assertions: they guard our own invariants, and a daemon that breaks one shall stop and be
# restarted rather than write to the wrong memory.
foreach(type IN ITEMS RELEASE RELWITHDEBINFO MINSIZEREL)
    string(REPLACE "-DNDEBUG" "" CMAKE_C_FLAGS_${type} "${CMAKE_C_FLAGS_${type}}")
endforeach()

include(CheckPIESupported)
check_pie_supported(LANGUAGES C)

add_library(mlacat_options INTERFACE)
target_compile_options(mlacat_options INTERFACE -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes
                                                -Wmissing-prototypes -Wvla -fvisibility=hidden)
if(MLACAT_WERROR)
    target_compile_options(mlacat_options INTERFACE -Werror)
endif()
target_compile_definitions(mlacat_options INTERFACE _GNU_SOURCE MLACAT_VERSION="${PROJECT_VERSION}")
if(MLACAT_SANITIZE)
    target_compile_options(mlacat_options INTERFACE -fsanitize=${MLACAT_SANITIZE} -fno-omit-frame-pointer
                                                    -fno-sanitize-recover=all)
    target_link_options(mlacat_options INTERFACE -fsanitize=${MLACAT_SANITIZE})
else()
    # What a distribution would switch on for a daemon whose peers are hostile. Fortified calls need an optimised build.
    target_compile_options(mlacat_options INTERFACE -fstack-protector-strong -fstack-clash-protection)
    target_compile_options(mlacat_options INTERFACE
        $<$<NOT:$<CONFIG:Debug>>:-U_FORTIFY_SOURCE> $<$<NOT:$<CONFIG:Debug>>:-D_FORTIFY_SOURCE=2>)
    target_link_options(mlacat_options INTERFACE -Wl,-z,relro,-z,now)
endif()

# A layer: a static library whose include path is its own folder and, through its dependencies, the folders to its left.
function(mlacat_layer name)
    cmake_parse_arguments(ARG "" "" "SOURCES;NEEDS" ${ARGN})
    add_library(mlacat_${name} STATIC ${ARG_SOURCES})
    target_include_directories(mlacat_${name} PUBLIC ${CMAKE_CURRENT_SOURCE_DIR})
    target_link_libraries(mlacat_${name} PUBLIC ${ARG_NEEDS} PRIVATE mlacat_options)
endfunction()
