/* ProcessPrng for Wine 8, which lacks the library that Windows has it in. Only for trying the Windows program: docs/releasing.md. */
#include <windows.h>

/* RtlGenRandom, by the name that it is exported under. */
BOOLEAN NTAPI SystemFunction036(PVOID data, ULONG size);

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T size)
{
    /* A call takes a length of 32 bits. */
    while (size > 0) {
        ULONG part = size > 65536 ? 65536 : (ULONG)size;
        if (!SystemFunction036(data, part)) {
            return FALSE;
        }
        data += part;
        size -= part;
    }
    return TRUE;
}
