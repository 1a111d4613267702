/* Device memory, and host memory that is registered. */
#include "fakestate.h"

#include <string.h>
#include <sys/mman.h>

BEGIN_HIDDEN

/* Sorted by address. Freed ones stay until the reset, so that no address is used twice. */
static struct allocation *allocations[allocation_maximum];
static struct allocation storage[allocation_maximum];
static size_t allocation_count;

struct registration {
    uintptr_t start;
    size_t byte_count;
    int device; /* or any device: ANY */
};
enum { ANY = -1, PORTABLE = 1 };

static struct registration registrations[registration_maximum];
static size_t registration_count;

enum { page = 4096 };

static size_t whole_pages(size_t byte_count) { return (byte_count + page - 1) / page * page; }

static char *map(size_t byte_count, int protection)
{
    char *start = mmap(NULL, whole_pages(byte_count), protection,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return start == MAP_FAILED ? NULL : start;
}

/* How many begin at or below the address. */
static size_t rank(uint64_t address)
{
    size_t low = 0, high = allocation_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (allocations[middle]->address <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

struct allocation *fc_find_allocation(uint64_t address)
{
    size_t index = rank(address);
    struct allocation *found = index > 0 ? allocations[index - 1] : NULL;
    return found && address - found->address < found->byte_count ? found : NULL;
}

static void insert(struct allocation *allocation)
{
    size_t index = rank(allocation->address);
    memmove(&allocations[index + 1], &allocations[index],
            (allocation_count - index) * sizeof *allocations);
    allocations[index] = allocation;
    allocation_count++;
}

static int allocate(CUdeviceptr *address, size_t byte_count, bool is_managed)
{
    if (byte_count == 0)
        return INVALID_VALUE;
    if (allocation_count == allocation_maximum)
        return OUT_OF_MEMORY;
    char *view = map(byte_count, PROT_READ | PROT_WRITE);
    /* One page more, so that no two allocations touch. */
    char *start = is_managed ? view : map(byte_count + page, PROT_NONE);
    if (!view || !start)
        return OUT_OF_MEMORY;
    struct allocation *allocation = &storage[allocation_count];
    *allocation = (struct allocation){
        .address = (uintptr_t)start,
        .byte_count = byte_count,
        .view = view,
        .device = fc_current_device(),
        .is_managed = is_managed,
    };
    insert(allocation);
    *address = allocation->address;
    return SUCCESS;
}

static void unmap_view(struct allocation *allocation)
{
    /* The address of managed memory stays taken. */
    if (allocation->is_managed)
        mprotect(allocation->view, whole_pages(allocation->byte_count), PROT_NONE);
    else
        munmap(allocation->view, whole_pages(allocation->byte_count));
}

static void free_allocation(struct allocation *allocation)
{
    allocation->is_freed = true;
    if (allocation->use_count == 0)
        unmap_view(allocation);
}

void fc_free_allocations(int device)
{
    for (size_t i = 0; i < allocation_count; i++)
        if (allocations[i]->device == device && !allocations[i]->is_freed)
            free_allocation(allocations[i]);
}

struct allocation *fc_use_allocation(uint64_t address, size_t byte_count)
{
    struct allocation *found = fc_find_allocation(address);
    if (!found || found->is_freed)
        return NULL;
    if (byte_count > found->byte_count - (address - found->address))
        return NULL;
    found->use_count++;
    return found;
}

bool fc_drop_allocation(struct allocation *allocation)
{
    allocation->use_count--;
    if (allocation->is_freed && allocation->use_count == 0)
        unmap_view(allocation);
    return !allocation->is_freed;
}

void *fakecuda_view(uint64_t address)
{
    fc_lock_state();
    struct allocation *found = fc_find_allocation(address);
    char *view = found && !found->is_freed ? found->view + (address - found->address) : NULL;
    fc_unlock_state();
    return view;
}

static struct registration *find_registration(uintptr_t start, size_t byte_count)
{
    for (size_t i = 0; i < registration_count; i++) {
        struct registration *each = &registrations[i];
        if (start < each->start + each->byte_count && each->start < start + byte_count)
            return each;
    }
    return NULL;
}

bool fc_is_registered(int device, const void *start, size_t byte_count)
{
    uintptr_t from = (uintptr_t)start;
    struct registration *found = find_registration(from, 1);
    return found && byte_count <= found->byte_count - (from - found->start) &&
           (found->device == ANY || found->device == device);
}

void fc_reset_memory(void)
{
    for (size_t i = 0; i < allocation_count; i++) {
        struct allocation *each = allocations[i];
        if (!each->is_freed && !each->is_managed)
            unmap_view(each);
        size_t guard = each->is_managed ? 0 : page;
        munmap((void *)(uintptr_t)each->address, whole_pages(each->byte_count + guard));
    }
    allocation_count = 0;
    registration_count = 0;
}

/* ---------------------------------------------------------------- calls */

CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t byte_count)
{
    int refused = fc_begin(CALL_cuMemAlloc_v2, NEED_SAFETY);
    return refused ? refused : fc_end(allocate(address, byte_count, false));
}

CUresult cuMemAllocManaged(CUdeviceptr *address, size_t byte_count, unsigned flags)
{
    (void)flags;
    int refused = fc_begin(CALL_cuMemAllocManaged, NEED_SAFETY);
    return refused ? refused : fc_end(allocate(address, byte_count, true));
}

/* Does not wait for what uses it: a program that relies on that waits for every stream. */
CUresult cuMemFree_v2(CUdeviceptr address)
{
    int refused = fc_begin(CALL_cuMemFree_v2, NEED_SAFETY);
    if (refused)
        return refused;
    struct allocation *found = fc_find_allocation(address);
    if (!found || found->address != address || found->is_freed)
        return fc_end(INVALID_VALUE);
    free_allocation(found);
    return fc_end(SUCCESS);
}

CUresult cuMemHostRegister_v2(void *start, size_t byte_count, unsigned flags)
{
    int refused = fc_begin(CALL_cuMemHostRegister_v2, NEED_SAFETY);
    if (refused)
        return refused;
    if (!start || byte_count == 0)
        return fc_end(INVALID_VALUE);
    if (find_registration((uintptr_t)start, byte_count))
        return fc_end(ALREADY_REGISTERED);
    if (registration_count == registration_maximum ||
        fc_state.registered_bytes + byte_count > fc_state.settings.register_limit)
        return fc_end(OUT_OF_MEMORY);
    int device = flags & PORTABLE ? ANY : fc_current_device();
    registrations[registration_count++] =
        (struct registration){(uintptr_t)start, byte_count, device};
    fc_state.registered_bytes += byte_count;
    return fc_end(SUCCESS);
}

/* Also in a context that is lost. */
CUresult cuMemHostUnregister(void *start)
{
    int refused = fc_begin(CALL_cuMemHostUnregister, NEED_ANY_CONTEXT);
    if (refused)
        return refused;
    if ((refused = fc_refuse_unsafe_call()) != 0)
        return fc_end(refused);
    struct registration *found = find_registration((uintptr_t)start, 1);
    if (!found || found->start != (uintptr_t)start)
        return fc_end_cleanup(NOT_REGISTERED);
    fc_state.registered_bytes -= found->byte_count;
    *found = registrations[--registration_count];
    return fc_end_cleanup(SUCCESS);
}

END_HIDDEN
